"""What a process does that reads a store: a module of few imports, which a process that is not forked repeats."""

from multiprocessing.queues import Queue

from cache.store.reader import TeacherCache


def sum_heatmaps(cache: TeacherCache, tokens: tuple[str, ...], results: Queue) -> None:
    """Put the sum of each sample's heatmap into a queue."""
    results.put([int(cache[token].heatmap.sum()) for token in tokens])
