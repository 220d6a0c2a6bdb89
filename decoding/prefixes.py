"""What a beam search remembers: the tree of prefixes, the frames at which their characters were said, and the beam itself.

Everything lies in a few arrays that the compiled search writes to. A search of any length needs little of them, because
`collect` throws away whatever no prefix of the beam descends from.
"""

from typing import NamedTuple

import numpy as np

from decoding.compiled import compiled

NODE = np.dtype(
    [
        ("parent", np.int32),  # -1: the empty prefix, which is node 0
        ("label", np.int32),  # the last one
        ("first_child", np.int32),  # -1: none
        ("next_sibling", np.int32),
        ("slot", np.int32),  # place in the beam; -1: none
        ("spelling", np.int32),  # lexicon node of the unfinished word; -1: no word of the model begins like that
        ("state", np.int32),  # of the language model, after the finished words
        ("hot", np.int32),  # state of the hot words
        ("gain", np.float64),  # exp(total - the parent's total)
        ("fixed", np.float64),  # ln, weighted: what is known to be added to the acoustic score
        ("total", np.float64),  # ln: with what is expected of an unfinished word
        ("lm", np.float64),  # ln p of the finished words, as the model says
    ],
    align=True,
)
# One character of the best path to a prefix. A label's frames are those from `start` on, until before `end` of the next step.
STEP = np.dtype(
    [("start", np.int32), ("previous", np.int32), ("previous_end", np.int32), ("previous_peak", np.float32)], align=True
)
# A prefix in the beam: all its paths, and the best one, each split by whether the last frame was blank.
ENTRY = np.dtype(
    [
        ("node", np.int32),
        ("p_blank", np.float64),  # sum over all paths, renormalised in every frame
        ("p_label", np.float64),
        ("best_blank", np.float64),  # the best path
        ("best_label", np.float64),
        ("step_blank", np.int32),  # its last step
        ("step_label", np.int32),
        ("end_blank", np.int32),  # where the last label of the path that is now in blanks ended
        ("peak_blank", np.float32),  # highest posterior of the last label in its frames
        ("peak_label", np.float32),
        ("is_new", np.bool_),  # the label begins in this frame: what follows is of the label before
        ("end_before", np.int32),
        ("peak_before", np.float32),
    ],
    align=True,
)
ENOUGH = 8192  # of nodes and steps, for most utterances
NODES, STEPS, BEAM, FRAME, ASKED, ROOM = range(6)  # what `counts` counts


class Memory(NamedTuple):
    nodes: np.ndarray  # (N,) NODE
    steps: np.ndarray  # (S,) STEP
    beam: np.ndarray  # (K,) ENTRY, most probable first
    rows: np.ndarray  # (K,) ENTRY: the next frame's beam while it is being made
    heap_score: np.ndarray  # (K,) float64: least first
    heap_row: np.ndarray  # (K,) int32
    labels: np.ndarray  # (C,) int32: the frame's, most probable first
    probs: np.ndarray  # (C,) float64: theirs
    prob_of: np.ndarray  # (C,) float64: by label; 0: not one of the frame's
    counts: np.ndarray  # (6,) int64: NODES, STEPS, entries of the BEAM, FRAMEs so far, transitions ASKED for, ROOM needed
    scale: np.ndarray  # (1,) float64: ln of what all probabilities were divided by


def new_memory(beam_width: int, num_labels: int, state: int, hot: int) -> Memory:
    """A beam of the empty prefix alone, in the language model's first `state` and the `hot` words' first."""
    memory = Memory(
        np.zeros(ENOUGH, NODE),
        np.zeros(ENOUGH, STEP),
        np.zeros(beam_width, ENTRY),
        np.zeros(beam_width, ENTRY),
        np.zeros(beam_width),
        np.zeros(beam_width, np.int32),
        np.zeros(num_labels, np.int32),
        np.zeros(num_labels),
        np.zeros(num_labels),
        np.zeros(6, np.int64),
        np.zeros(1),
    )
    root = memory.nodes[0]
    root["parent"] = root["first_child"] = root["next_sibling"] = -1
    root["gain"] = 1
    root["state"], root["hot"] = state, hot
    first = memory.beam[0]
    first["p_blank"] = first["best_blank"] = 1
    first["step_blank"] = first["step_label"] = -1
    memory.counts[NODES] = memory.counts[BEAM] = 1
    return memory


def with_room(memory: Memory, nodes: int, steps: int) -> Memory:
    """The same search with place for this many more nodes and steps at least."""
    arrays = {}
    for name, count, more in (("nodes", memory.counts[NODES], nodes), ("steps", memory.counts[STEPS], steps)):
        old = getattr(memory, name)
        if len(old) < 2 * count + more:  # at least half of it free, so that garbage is collected rarely
            arrays[name] = np.zeros(4 * count + 2 * more, old.dtype)
            arrays[name][:count] = old[:count]
    return memory._replace(**arrays)


@compiled
def collect_garbage(memory: Memory, node_at: np.ndarray, step_at: np.ndarray) -> None:
    """Keep the nodes and steps that the beam descends from, moved together in their order: parents before children.

    node_at (nodes,) and step_at (steps,) int32, all -1, become where each of them is moved.
    """
    nodes, steps, beam, counts = memory.nodes, memory.steps, memory.beam, memory.counts
    node_at[0] = 0
    for i in range(counts[BEAM]):
        n = beam[i].node
        while node_at[n] < 0:
            node_at[n] = 0
            n = nodes[n].parent
        for s in (beam[i].step_blank, beam[i].step_label):
            while s >= 0 and step_at[s] < 0:
                step_at[s] = 0
                s = steps[s].previous
    kept = 0
    for n in range(counts[NODES]):
        if node_at[n] < 0:
            continue
        node_at[n] = kept
        nodes[kept] = nodes[n]
        nodes[kept].first_child = -1
        nodes[kept].next_sibling = -1
        if n > 0:
            parent = node_at[nodes[kept].parent]
            nodes[kept].parent = parent
            nodes[kept].next_sibling = nodes[parent].first_child
            nodes[parent].first_child = kept
        kept += 1
    counts[NODES] = kept
    kept = 0
    for s in range(counts[STEPS]):
        if step_at[s] < 0:
            continue
        step_at[s] = kept
        steps[kept] = steps[s]
        if steps[kept].previous >= 0:
            steps[kept].previous = step_at[steps[kept].previous]
        kept += 1
    counts[STEPS] = kept
    for i in range(counts[BEAM]):
        beam[i].node = node_at[beam[i].node]
        if beam[i].step_blank >= 0:
            beam[i].step_blank = step_at[beam[i].step_blank]
        if beam[i].step_label >= 0:
            beam[i].step_label = step_at[beam[i].step_label]
