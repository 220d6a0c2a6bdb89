"""The compiled functions that Python calls; they are kept on disk."""

from decoding import compiled, language, ngrams, prefixes, readings, search
from decoding.compiled import entry_point, version
from decoding.language import add_answers
from decoding.prefixes import collect_garbage
from decoding.readings import read_prefixes, read_texts, spell, weigh
from decoding.search import search as search_frames


def _compile_entry_points(sources: str) -> tuple:
    """What Python calls, compiled once and kept on disk.

    numba compiles anew when the file of a function has changed, but does not look at the files of what that calls. `sources`,
    a variable of these functions, is part of what they are kept under.
    """

    @entry_point
    def run_search(frames, limits, language, answers, memory):
        assert sources
        return search_frames(frames, limits, language, answers, memory)

    @entry_point
    def run_read_prefixes(memory, readings):
        assert sources
        return read_prefixes(memory, readings)

    @entry_point
    def run_read_texts(language, answers, memory, readings):
        assert sources
        return read_texts(language, answers, memory, readings)

    @entry_point
    def run_weigh(memory, readings, ending, begun):
        assert sources
        weigh(memory, readings, ending, begun)

    @entry_point
    def run_spell(memory, reading, space, ending, begun, spelled):
        assert sources
        return spell(memory, reading, space, ending, begun, spelled)

    @entry_point
    def run_collect(memory, node_at, step_at):
        assert sources
        collect_garbage(memory, node_at, step_at)

    @entry_point
    def run_add_answers(answers, keys, ln_p, states):
        assert sources
        add_answers(answers, keys, ln_p, states)

    return run_search, run_read_prefixes, run_read_texts, run_weigh, run_spell, run_collect, run_add_answers


FILES = [module.__file__ for module in (compiled, ngrams, prefixes, language, search, readings)]
ENTRY_POINTS = _compile_entry_points(version(FILES))
run_search, run_read_prefixes, run_read_texts, run_weigh, run_spell, run_collect, run_add_answers = ENTRY_POINTS
