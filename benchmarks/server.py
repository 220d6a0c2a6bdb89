"""The server under load, on loopback: throughput with and without batches, memory, nonsense, and SIGTERM.

    python benchmarks/server.py --model-path M --recordings FOLDER [--clients 64] [--seconds 60]
    python benchmarks/server.py --model-path M --recordings FOLDER --requests 10000
    python benchmarks/server.py --model-path M --recordings FOLDER --fuzz 5000 [--broken FOLDER]
    python benchmarks/server.py --model-path M --recordings FOLDER --drain

Without --model-path, a network of the default size with random weights. Clients are processes of their own, each of many
connections; every answer is compared with what the same recording got when it was asked for alone. What a queue is made for
differs from a machine's speed: compare ratios of one run, not times.
"""

import argparse
import asyncio
import collections
import json
import multiprocessing
import os
import platform
import random
import re
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import date
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # also when run as a file of this folder

WAIT = 300.0  # seconds for an answer
SUFFIXES = (".wav", ".flac")
PROCESSES = 2  # of clients
UNFINISHED = {"bytes", "truncated", "damaged", "chunks", "socket"}  # nonsense whose sender says that there is no more to come
# What --fuzz puts in the place of what belongs there.
METHODS = [b"PUT", b"GET", b"DELETE", b"BREW", b"OPTIONS", b"HEAD", b"post", b""]
FORM = b"multipart/form-data; boundary="
CHARSETS = [FORM + b"+; charset=" + name for name in (b"undefined", b"hex", b"utf-7", b"\xff", b"idna", b"unicode_escape")]
TYPES = [b"application/json", b"audio/wav", b"", b"multipart/form-data", FORM, FORM + b"b" * 300, *CHARSETS]
FIELDS = [b"decoder", b"beam_width", b"top_paths", b"hotwords", b"offsets", b"words", b"file", b"", b"\0", b"x" * 5000]
VALUES = [
    b"beam",
    b"-1",
    b"1e9",
    b"      7",
    b"9" * 5000,
    b"0" * 8 + b"1" + b"9" * 5000,
    b"\xff\xfe",
    "١٢".encode(),
    b"../../etc/passwd",
    b"A:nan",
    b"\\ud800",
]
LINES = [b"Host: [::1\r\n", b"Content-Length: 7\r\n", b"X: " + b"y" * 70000 + b"\r\n", b"Expect: magic\r\n", b"\0: \r\n"]
SIZES = [b"10", b"-1", b"zz", b"f" * 20, b"5;" + b"e" * 20000]
PATHS = [b"/page/..%2f..%2fserver.py", b"/%00", b"/v1/models/%ff", b"//", b"/page/" + b"a" * 9000, b"/stream"]
UPGRADE = b"GET /stream HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
UPGRADE += b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
MESSAGES = [b'{"rate": 16000}', b'{"rate": 1e9}', b'{"eof": 1}', b"[" * 4000, b"\xff", b"", b"{}", b'{"key": []}']
PATHS += [b"/v1/audio/transcriptions", b"/transcribe?" + b"q" * 9000, b"*", b"http://[::1/transcribe"]


@contextmanager
def served(model: Path, *flags: object) -> Iterator[tuple[str, int, subprocess.Popen]]:
    """server.py on loopback: its host, port, and process."""
    command = [sys.executable, ROOT / "server.py", "--model-path", model, "--host", "127.0.0.1", "--port", "0", *flags]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True) as process:
        found = re.search(r"at http://(\S+):(\d+)/$", process.stdout.readline())
        if not found:
            raise SystemExit("the server did not start")
        try:
            yield found[1], int(found[2]), process
        finally:
            if process.poll() is None:
                process.terminate()


def body_of(recording: bytes) -> bytes:
    """A request, as curl sends it."""
    part = b'--+\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + recording + b"\r\n--+--\r\n"
    kind = "Content-Type: multipart/form-data; boundary=+"
    return f"POST /transcribe HTTP/1.1\r\nHost: localhost\r\n{kind}\r\nContent-Length: {len(part)}\r\n\r\n".encode() + part


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> tuple[int, bytes, bool]:
    """Send a request. Returns: the status, the answer's body, and whether the connection can be used again."""
    writer.write(request)
    await writer.drain()
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = re.search(r"content-length: (\d+)", lines)
    content = await reader.readexactly(int(length[1])) if length else await reader.read()
    return int(lines.split(None, 2)[1]), content, "connection: close" not in lines


async def client(address: tuple[str, int], requests: list[bytes], texts: list[str], until: float, number: int, tally: dict):
    """Ask for one recording after another, in an order of one's own, and compare the answers."""
    rng, streams = random.Random(number), None
    while time.time() < until and tally["left"] > 0:
        tally["left"] -= 1
        which, began = rng.randrange(len(requests)), time.perf_counter()
        try:
            if streams is None:
                streams = await asyncio.open_connection(*address)
        except OSError:
            tally["refused"] += 1
            return
        try:
            status, content, stays = await asyncio.wait_for(ask(*streams, requests[which]), WAIT)
        except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError) as error:
            tally["errors"][type(error).__name__] += 1
            return
        tally["statuses"][status] += 1
        tally["latencies"].append(time.perf_counter() - began)
        tally["wrong"] += status == 200 and json.loads(content)["transcription"][0][0] != texts[which]
        if not stays:
            streams[1].close()
            streams = None
    if streams:
        streams[1].close()


def client_process(address: tuple, requests: list, texts: list, seconds: float, numbers: range, count: int, results: object):
    tally = {"statuses": collections.Counter(), "errors": collections.Counter(), "latencies": [], "wrong": 0, "refused": 0}
    tally["left"], began = count, time.time()

    async def all_clients() -> None:
        await asyncio.gather(*(client(address, requests, texts, began + seconds, number, tally) for number in numbers))

    asyncio.run(all_clients())
    tally["seconds"] = time.time() - began
    results.put(tally)


class Load:
    """Clients in processes of their own."""

    def __init__(self, address: tuple, requests: list, texts: list, clients: int, seconds: float, count: int = 10**9):
        context = multiprocessing.get_context("spawn")
        self.results, share = context.Queue(), clients // PROCESSES
        arguments = [
            (address, requests, texts, seconds, range(i * share, (i + 1) * share), count // PROCESSES, self.results)
            for i in range(PROCESSES)
        ]
        self.processes = [context.Process(target=client_process, args=each, daemon=True) for each in arguments]
        for process in self.processes:
            process.start()

    def tally(self) -> dict:
        """What came of it, of all."""
        parts = [self.results.get() for _ in self.processes]
        for process in self.processes:
            process.join()
        whole = parts[0]
        for part in parts[1:]:
            for name in ("statuses", "errors", "wrong", "refused", "latencies"):
                whole[name] += part[name]
            whole["seconds"] = max(whole["seconds"], part["seconds"])
        return whole


def alone(address: tuple, requests: list[bytes]) -> list[str]:
    """The text of each recording when nobody else asks."""

    async def one_by_one() -> list[str]:
        texts = []
        for request in requests:
            streams = await asyncio.open_connection(*address)
            status, content, _ = await ask(*streams, request)
            streams[1].close()
            if status != 200:
                raise SystemExit(f"a recording was refused: {content.decode()}")
            texts.append(json.loads(content)["transcription"][0][0])
        return texts

    return asyncio.run(one_by_one())


def metrics(address: tuple) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{address[0]}:{address[1]}/metrics") as answer:
        lines = [line.rpartition(" ") for line in answer.read().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def quantile(before: dict, after: dict, name: str, share: float) -> float:
    """The upper edge of the bucket of a histogram in which a share of what came between is reached."""
    edges = [(float(found[1]), key) for key in after if (found := re.fullmatch(name + r'_bucket\{le="(.*)"\}', key))]
    total = after[f"{name}_count"] - before.get(f"{name}_count", 0)
    return next(edge for edge, key in sorted(edges) if after[key] - before.get(key, 0) >= share * total)


def resident(process: subprocess.Popen) -> float:
    """MB of memory that a process has."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())[1]) / 1024


def told(tally: dict) -> str:
    statuses = ", ".join(f"{status}: {count}" for status, count in sorted(tally["statuses"].items()))
    return f"statuses {{{statuses}}}, errors {dict(tally['errors'])}, wrong answers {tally['wrong']}"


def throughput(model: Path, requests: list[bytes], args: argparse.Namespace) -> None:
    """The same clients at a server that makes batches and one that does not; texts are those of the second, one by one."""
    rates, texts = {}, None
    for name, flags in (("one by one", ["--max-batch-size", 1, "--max-wait-ms", 0]), ("batches", args.flag)):
        with served(model, *flags) as (*address, _):
            texts = texts or alone(tuple(address), requests)
            before = metrics(tuple(address))
            tally = Load(tuple(address), requests, texts, args.clients, args.seconds).tally()
            seconds, after = tally["seconds"], metrics(tuple(address))
        audio, pieces, batches = (
            after[f"asr_{counted}"] - before[f"asr_{counted}"]
            for counted in ("audio_seconds_total", "batch_size_sum", "batch_size_count")
        )
        rates[name] = audio / seconds
        latencies = statistics.quantiles(tally["latencies"], n=20)
        queued = [quantile(before, after, "asr_queue_seconds", share) for share in (0.5, 0.95)]
        print(
            f"{name:10} {len(tally['latencies']) / seconds:6.1f} answers/s, {rates[name]:6.1f} s of audio/s, "
            f"{pieces / batches:4.1f} a batch; latency p50 {latencies[9]:.2f} s, p95 {latencies[-1]:.2f} s; "
            f"queue p50 <= {queued[0]:g} s, p95 <= {queued[1]:g} s; {told(tally)}",
            flush=True,
        )
    print(f"batches: {rates['batches'] / rates['one by one']:.2f} times the throughput", flush=True)


def memory(model: Path, requests: list[bytes], args: argparse.Namespace) -> None:
    """Under one load without a pause: the most that the server has in each thousand requests, and what it has behind all."""
    with served(model, *args.flag) as (*address, process):
        texts = alone(tuple(address), requests)
        load = Load(tuple(address), requests, texts, args.clients, 10**6, args.requests)
        most: collections.Counter[int] = collections.Counter()
        while any(client.exitcode is None for client in load.processes) and load.results.empty():
            time.sleep(0.1)
            counted = metrics(tuple(address)).get('asr_requests_total{code="200",route="/transcribe"}', 0)
            thousand = int(counted - len(texts)) // 1000
            most[thousand] = max(most[thousand], resident(process))
        print(told(load.tally()))
        for thousand, found in sorted(most.items()):
            print(f"requests {1000 * thousand + 1:6} to {1000 * thousand + 1000:6}: {found:7.1f} MB at most")
        time.sleep(3.0)
        growth = 100 * (max(most.values()) / most[0] - 1)
        print(f"most of all {growth:+.2f} % above that of the first thousand; {resident(process):.1f} MB left when nobody asks")


def drain(model: Path, requests: list[bytes], args: argparse.Namespace) -> None:
    with served(model, *args.flag) as (*address, process):
        texts = alone(tuple(address), requests)
        load = Load(tuple(address), requests, texts, args.clients, 10**6)
        time.sleep(min(args.seconds, 10.0))
        asked, began = metrics(tuple(address))["asr_requests_under_way"], time.perf_counter()
        process.send_signal(signal.SIGTERM)
        status = process.wait()
        seconds, tally = time.perf_counter() - began, load.tally()
        print(
            f"SIGTERM with {asked:.0f} requests under way: status {status} after {seconds:.1f} s; {told(tally)}; "
            f"{tally['refused']} of {args.clients} clients could not connect again"
        )


def nonsense(rng: random.Random, requests: list[bytes], broken: list[bytes]) -> tuple[str, bytes]:
    """A kind of bad request, and its bytes."""
    whole, noise = rng.choice(requests), rng.randbytes(rng.randrange(3000))
    head, _, form = whole.partition(b"\r\n\r\n")
    place = rng.randrange(60, len(whole) if rng.random() < 0.5 else 260)
    word, value, line, size, kind, path = map(rng.choice, (METHODS, VALUES, LINES, SIZES, TYPES, PATHS))
    field = b'--+\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (rng.choice(FIELDS), value)
    fields = field * rng.choice([1, 1, 2, 50]) + form
    ways = {
        "bytes": noise,
        "truncated": whole[:place],
        "damaged": whole[:place] + noise[:40] + whole[place + len(noise[:40]) :],
        "broken": body_of(rng.choice(broken)) if broken else noise,
        "type": whole.replace(b"multipart/form-data; boundary=+", kind, 1),
        "method": word + whole[4:],
        "fields": re.sub(rb"(?<=Length: )\d+", b"%d" % len(fields), head) + b"\r\n\r\n" + fields,
        "headers": whole.replace(b"Host: localhost\r\n", line, 1),
        "chunks": re.sub(rb"Content-Length: \d+", b"Transfer-Encoding: chunked", head) + b"\r\n\r\n" + size + b"\r\n" + noise,
        "path": whole.replace(b"POST /transcribe", rng.choice([b"GET ", b"POST "]) + path, 1),
    }
    ways["socket"] = UPGRADE + b"".join(frame(rng, noise) for _ in range(rng.randrange(1, 6)))
    return rng.choice(list(ways.items()))


def frame(rng: random.Random, noise: bytes) -> bytes:
    """A WebSocket's, of any kind, masked by zeros; at times it says that it is longer than it is."""
    content = rng.choice([noise, noise, rng.choice(MESSAGES)])[: rng.choice([125, 2**15])]
    size = len(content) + (rng.randrange(9) if rng.random() < 0.1 else 0)
    length = struct.pack("!B", 0x80 | size) if size < 126 else struct.pack("!BH", 0x80 | 126, size)
    return bytes([rng.choice([0x81, 0x82, 0x82, 0x82, 0x88, 0x89, 0x8A, 0x01, 0x80, 0xF3])]) + length + bytes(4) + content


def throw(address: tuple, request: bytes, ends: bool, rng: random.Random) -> str:
    """Send a bad request, at times byte by byte, and at times go away. Returns: the answer's status, or what came instead.

    ends: say that no more follows, which the server takes for a farewell.
    """
    with socket.create_connection(address, timeout=60) as connection:
        try:
            if request.startswith(UPGRADE):
                connection.sendall(UPGRADE)
                connection.recv(4096)
                request = request[len(UPGRADE) :]
            if slow := rng.random() < 0.05:  # slowly, and not to the end
                for byte in request[: rng.randrange(1, 200)]:
                    connection.sendall(bytes([byte]))
                    time.sleep(0.002)
            else:
                connection.sendall(request)
            if rng.random() < 0.2:  # gone, with a reset
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return "left"
            if ends or slow:
                connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(12)
        except OSError as error:
            return type(error).__name__
        return answer[9:12].decode("latin-1") if answer.startswith(b"HTTP") else "frames" if answer else "nothing"


def fuzz(model: Path, requests: list[bytes], args: argparse.Namespace) -> None:
    """Also with clients that hold connections open and send a byte now and then, and others that ask in earnest meanwhile."""
    broken = [path.read_bytes() for path in sorted(args.broken.glob("*")) if path.is_file()] if args.broken else []
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    rng = random.Random(args.seed)
    with served(model, *args.flag) as (*address, process):
        address = tuple(address)
        texts = alone(address, requests)
        slow = [socket.create_connection(address) for _ in range(50)]
        load = Load(address, requests, texts, 4, 10**6)
        for number in range(args.fuzz):
            kind, request = nonsense(rng, requests, broken)
            counts[kind][throw(address, request, kind in UNFINISHED, rng)] += 1
            if number % 20 == 0:
                for connection in slow:
                    with suppress(OSError):
                        connection.send(b"G" if number == 0 else b"x")
        for connection in slow:
            connection.close()
        right = alone(address, requests) == texts
        codes = collections.Counter()
        for name, value in metrics(address).items():
            if found := re.match(r'asr_requests_total\{code="(\d+)"', name):
                codes[found[1]] += int(value)
        process.send_signal(signal.SIGTERM)
        status = process.wait()
        tally = load.tally()
    for kind, found in sorted(counts.items()):
        print(f"{kind:10} {dict(sorted(found.items()))}")
    print(f"all        {dict(sorted(sum(counts.values(), collections.Counter()).items()))}")
    print(f"by the server's own count: {dict(sorted(codes.items()))}")
    print(f"from four clients that asked in earnest meanwhile, and saw the end: {told(tally)}")
    print(f"afterwards it {'answers as before' if right else 'GIVES OTHER ANSWERS'}, and ends with status {status}")


def write_random_model(path: Path) -> None:
    import torch  # here, as the processes of the clients import this file, too

    from asr.checkpoint import Checkpoint, save_checkpoint
    from config import AudioConfig, ModelConfig
    from data.labels import Labels
    from model import DeepSpeech

    torch.manual_seed(1)
    config = ModelConfig()
    labels = Labels(["_", "'", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ", " "])
    save_checkpoint(Checkpoint(config, AudioConfig(), labels, DeepSpeech(config).state_dict()), path)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", type=Path, help="(default: the default network with random weights)")
    parser.add_argument("--recordings", type=Path, required=True, help="a folder of wav or flac files, which are asked for")
    parser.add_argument("--count", type=int, default=40, help="so many of them")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--flag", nargs="*", default=[], help="more for server.py, without the dashes: max-batch-size=8")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--requests", type=int, help="measure memory over so many")
    what.add_argument("--fuzz", type=int, help="send so many requests that make no sense")
    what.add_argument("--drain", action="store_true", help="send SIGTERM under load")
    parser.add_argument("--broken", type=Path, help="a folder of broken recordings for --fuzz")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    args.flag = [f"--{flag}" for flag in args.flag]
    found = sorted(path for path in args.recordings.rglob("*") if path.suffix in SUFFIXES)
    if not found:
        raise SystemExit(f"{args.recordings}: no recordings ({', '.join(SUFFIXES)})")
    requests = [body_of(path.read_bytes()) for path in random.Random(args.seed).sample(found, min(args.count, len(found)))]
    print(
        f"{date.today()}, {platform.machine()}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; Python "
        f"{platform.python_version()}, torch {version('torch')}; {len(requests)} recordings, {args.clients} clients",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        model = args.model_path or Path(folder) / "random.pth"
        if not args.model_path:
            write_random_model(model)
        work = memory if args.requests else fuzz if args.fuzz else drain if args.drain else throughput
        work(model, requests, args)


if __name__ == "__main__":
    main()
