from cache.visualization.markup import Html, element, join

EVIL = "<script>alert('x')</script>"


def test_text_is_escaped_and_elements_are_not() -> None:
    inner = element("b", EVIL)
    assert inner == "<b>&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;</b>"
    assert element("p", inner, 5) == f"<p>{inner}5</p>"


def test_attributes_are_escaped_too() -> None:
    assert element("a", title='"><script>') == '<a title="&quot;&gt;&lt;script&gt;"></a>'
    assert element("button", "x", class_="on", aria_pressed="true", hidden=True, id=None) == (
        '<button class="on" aria-pressed="true" hidden>x</button>'
    )


def test_elements_without_an_end() -> None:
    assert element("img", src="a") == '<img src="a"/>'


def test_joining() -> None:
    assert join("a < b", Html("<br>")) == "a &lt; b<br>"
