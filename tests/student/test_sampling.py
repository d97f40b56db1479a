from student.sampling import SeededSampler


def test_the_sequence_is_one_for_any_number_of_ranks() -> None:
    single = list(SeededSampler(13, seed=7))
    assert sorted(draw.index for draw in single) == list(range(13))
    for ranks in (2, 4):
        parts = [list(SeededSampler(13, seed=7, rank=rank, ranks=ranks)) for rank in range(ranks)]
        merged = [draw for together in zip(*parts, strict=True) for draw in together]
        assert merged == single[: len(merged)]


def test_epochs_differ_in_order_and_seed() -> None:
    sampler = SeededSampler(20, seed=7)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert [draw.index for draw in first] != [draw.index for draw in second]
    assert not {draw.seed for draw in first} & {draw.seed for draw in second}
