"""Corpora in tar files: what is in them is what the same recordings in folders are, and nothing is lost from a broken one."""

import io
import json
import re
import tarfile

import numpy as np
import pytest
import soundfile
import torch
from beeps import DATA, ROOT, SMALL, make_corpus, run, start, train

from data.audio import load_audio
from data.manifest import read_manifest, read_transcript


def flac(seconds=1.0, pitch=440):
    file = io.BytesIO()
    soundfile.write(file, 0.3 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * 16000)) / 16000), 16000, format="FLAC")
    return file.getvalue()


def pack(path, members, **kwargs):
    """`members`: names and contents; or TarInfo and content."""
    with tarfile.open(path, "w", **kwargs) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name) if isinstance(name, str) else name
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_what_is_in_shards(tmp_path):
    first = [("s1/a.flac", flac(pitch=300)), ("s1/a.txt", b"ONE\n"), ("s1/a.cls", b"3"), ("README", b"...")]
    second = [
        ("b.txt", b"\xef\xbb\xbfTWO"),
        ("b.WAV", flac(0.5)),
        ("c.en.json", b'{"text": "THREE", "more": 1}'),
        ("c.flac", flac()),
    ]
    pack(tmp_path / "x-0.tar", [*first, ("s1/._a.flac", b"rubbish of macOS"), (f"s2/{'long' * 60}.flac", flac())])
    pack(tmp_path / "x-1.tar", second, format=tarfile.GNU_FORMAT)
    utterances = read_manifest(f"{tmp_path}/x-{{0..1}}.tar")
    assert [u.where for u in utterances] == [f"{tmp_path}/x-{where}" for where in ("0.tar:1", "0.tar:2", "1.tar:1", "1.tar:2")]
    assert [u.text for u in utterances] == ["ONE\n", None, "TWO", "THREE"]
    with pytest.raises(ValueError, match=r"x-0\.tar:2: .* neither a text"):
        read_transcript(utterances[1])
    np.testing.assert_array_equal(load_audio(utterances[0].audio, 16000), load_audio(io.BytesIO(flac(pitch=300)), 16000))
    assert [len(load_audio(u.audio, 16000)) for u in utterances] == [16000, 16000, 8000, 16000]
    assert len(load_audio(utterances[3].audio, 16000, 0.25, 0.5)) == 8000


A, TEXT = ("a.flac", flac(0.1)), ("a.txt", b"A")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([A, TEXT, ("a.wav", b"")], r"a\.flac and a\.wav have one name"),
        ([("a.txt", b"A")], "a has no recording"),
        ([("README", b"A")], "no utterances"),
        ([], "no utterances"),
        ([A, ("a.txt", b"\xff\xfe")], r"a\.txt: not UTF-8"),
        ([A, ("a.json", b"{")], r"a\.json: not JSON"),
        ([A, ("a.json", b"[" * 100_000)], r"a\.json: not JSON"),
        ([A, ("a.json", b'{"text": 3}')], r'a\.json: no "text"'),
        ([A, ("a.txt", b"A" * (2**20 + 1))], r"a\.txt: 1048577 bytes"),
    ],
)
def test_a_shard_that_is_not_laid_out_so_is_refused(tmp_path, members, message):
    pack(tmp_path / "x.tar", members)
    with pytest.raises(ValueError, match=rf"x\.tar: {message}") as refused:
        read_manifest(tmp_path / "x.tar")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("keep", "message"),
    [(700, "truncated within a.flac"), (-10240, "truncated: it has no end"), (100, "not a tar file"), (0, "no utt|not a")],
)
def test_a_shard_that_breaks_off_is_refused(tmp_path, keep, message):
    whole = pack(tmp_path / "x.tar", [A]).read_bytes()
    if keep < 0:  # up to the zeros that end it
        keep = 512 + -(-len(A[1]) // 512) * 512
    (tmp_path / "x.tar").write_bytes(whole[:keep])
    with pytest.raises(ValueError, match=rf"x\.tar: ({message})"):
        read_manifest(tmp_path / "x.tar")


def test_other_things_called_tar_are_refused(tmp_path):
    (tmp_path / "x.tar").write_text("/1.wav,/1.txt\n" * 100)
    with pytest.raises(ValueError, match=r"x\.tar: not a tar file"):
        read_manifest(tmp_path / "x.tar")
    (tmp_path / "y.tar").mkdir()
    with pytest.raises(ValueError, match=r"y\.tar: a folder"):
        read_manifest(tmp_path / "y.tar")
    with pytest.raises(ValueError, match=r"x\.tar\.gz: compressed"):
        read_manifest(tmp_path / "x.tar.gz")
    with pytest.raises(FileNotFoundError):
        read_manifest(tmp_path / "z.tar")


def test_links_and_devices_in_a_shard_lead_nowhere(tmp_path):
    link, device = tarfile.TarInfo("b.flac"), tarfile.TarInfo("c.flac")
    link.type, link.linkname, device.type = tarfile.SYMTYPE, "/etc/passwd", tarfile.CHRTYPE
    pack(tmp_path / "x.tar", [(link, b""), (device, b""), A, TEXT])
    (utterance,) = read_manifest(tmp_path / "x.tar")
    assert utterance.text == "A"


def test_a_shard_that_changes_while_it_is_read(tmp_path):
    pack(tmp_path / "x.tar", [A, TEXT])
    (utterance,) = read_manifest(tmp_path / "x.tar")
    (tmp_path / "x.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"x\.tar/512\+.*a\.flac: .*has changed since"):
        load_audio(utterance.audio, 16000)


# the commands


def convert(corpus, *args):
    done = run("data/convert_manifest.py", *args, cwd=corpus)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Beeps in files, and the first 24 of them in three shards as well."""
    corpus = make_corpus(tmp_path_factory.mktemp("corpus"))
    lines = (corpus / "train.csv").read_text().splitlines(keepends=True)
    (corpus / "some.csv").write_text("".join(lines[:24]))
    packed = run(
        "data/convert_manifest.py", "--input", "some.csv", "--output", "s-{0..2}.tar", "--to", "webdataset", cwd=corpus
    )
    assert packed.returncode == 0, packed.stderr
    return corpus


def weights(folder):
    return torch.load(folder / "deepspeech_2.pth.tar", weights_only=True)["weights"]


RANDOM = "--epochs 2 --batch-size 2 --spec-augment --speed-perturb 0.1 --checkpoint".split()


def into(folder):
    return ["--save-folder", str(folder), "--model-path", str(folder / "best.pth")]


def assert_same_weights(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_shards_train_as_files_do_killed_or_not_and_shared_or_not(corpus, tmp_path):
    """The same utterances in the same order with the same augmentation, so that the weights are the same to the bit."""
    files = train(corpus, *RANDOM, "--train-manifest", "some.csv", *into(tmp_path / "files"))
    assert files.returncode == 0, files.stderr
    shards = ["--train-manifest", "s-{0..2}.tar", *RANDOM, "--num-workers", "2", "--checkpoint-per-batch", "1"]
    killed = start("train.py", *DATA, *SMALL, *shards, *into(tmp_path / "killed"), cwd=corpus)
    while not list((tmp_path / "killed").glob("*epoch_2_iter_*.pth")):
        assert killed.poll() is None, killed.stderr.read()
    killed.kill()
    killed.communicate()
    resumed = train(corpus, *shards, *into(tmp_path / "killed"), "--continue-from", "latest")
    assert resumed.returncode == 0, resumed.stderr
    assert re.search(r"continuing .* in epoch 2, [0-9]+ utterances", resumed.stdout)
    assert_same_weights(weights(tmp_path / "files"), weights(tmp_path / "killed"))


def test_two_processes_share_shards_without_overlap(corpus, tmp_path):
    common = ["--nproc", "2", ROOT / "train.py", *DATA, *SMALL, *RANDOM]
    for name, manifest in (("files", "some.csv"), ("shards", "s-{0..2}.tar")):
        done = run("multiproc.py", *common, "--train-manifest", manifest, *into(tmp_path / name), cwd=corpus)
        assert done.returncode == 0, done.stderr
    assert_same_weights(weights(tmp_path / "files"), weights(tmp_path / "shards"))


def test_shards_come_out_as_they_went_in(corpus, tmp_path):
    out = run(
        "data/convert_manifest.py", "--input", "s-{0..2}.tar", "--output", tmp_path / "o.jsonl", "--to", "nemo", cwd=corpus
    )
    assert out.returncode == 0, out.stderr
    told, there = read_manifest(tmp_path / "o.jsonl"), read_manifest(corpus / "some.csv")
    assert [read_transcript(u) for u in told] == [read_transcript(u) for u in there]
    for ours, theirs in zip(told, there, strict=True):
        np.testing.assert_array_equal(load_audio(ours.audio, 16000), load_audio(theirs.audio, 16000))
    doctor = run("data/verify_manifest.py", "--manifest", "s-{0..2}.tar", "--labels-path", "labels.json", "--json", cwd=corpus)
    assert json.loads(doctor.stdout)["manifests"][0]["utterances"] == 24


def test_shards_that_are_read_are_not_written_over(corpus, tmp_path):
    convert(corpus, "--input", "some.csv", "--output", tmp_path / "r-{0..1}.tar", "--to", "webdataset")
    before = [(tmp_path / f"r-{i}.tar").read_bytes() for i in (0, 1)]
    for names in ("r-{1,0}.tar", "r-{0..3}.tar"):
        args = ["--input", tmp_path / "r-{0..1}.tar", "--output", tmp_path / names, "--to", "webdataset"]
        refused = run("data/convert_manifest.py", *args, cwd=corpus)
        assert refused.returncode == 1 and "recordings are read from it" in refused.stderr and refused.stderr.count("\n") == 1
    assert [(tmp_path / f"r-{i}.tar").read_bytes() for i in (0, 1)] == before
    many = ["--input", "some.csv", "--output", tmp_path / "many-{00..24}.tar", "--to", "webdataset"]
    refused = run("data/convert_manifest.py", *many, cwd=corpus)
    assert refused.returncode == 1 and "25 shards for 24 utterances" in refused.stderr
    assert not list(tmp_path.glob("many*"))


@pytest.mark.parametrize("pattern", ["s-{0..3}.tar", "s-{0..2.tar", "none.tar"])
def test_shards_that_are_not_there_end_a_training_in_one_line(corpus, tmp_path, pattern):
    failed = train(corpus, "--train-manifest", pattern, *into(tmp_path))
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: ") and failed.stderr.count("\n") == 1
    assert ".tar" in failed.stderr
