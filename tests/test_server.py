"""The server as its clients see it: a real process, real connections, every status."""

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
import soundfile
from beep_network import RATE, save_beep_network, sound
from beeps import ROOT
from served import Served, in_thread, received, recognizer, served, until, write_sound

import serving.connections
import serving.requests
from asr.recognizer import Recognizer

SAID = "CAB AB"
KEY = "correct horse"
ORIGIN = "https://app.example"
PART = b'--x\r\nContent-Disposition: form-data; name="file"; filename="../../etc/a"\r\n\r\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    save_beep_network(folder / "beeps.pth")
    (folder / "keys.txt").write_text(f"# for the tests\n\n{KEY}\nanother\n")
    return folder


@pytest.fixture(scope="module")
def speech(folder) -> Path:
    return write_sound(folder, SAID)


@pytest.fixture(scope="module")
def server(folder):
    with served(folder / "beeps.pth", "--max-upload-mb", 2, "--max-audio-seconds", 40) as running:
        yield running


@pytest.fixture(scope="module")
def locked(folder):
    with served(folder / "beeps.pth", "--api-key-file", folder / "keys.txt", "--allow-origin", ORIGIN) as running:
        yield running


@pytest.fixture(scope="module")
def ear(folder) -> Recognizer:
    return recognizer(folder / "beeps.pth")


def refusal(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    told = answer.json()
    assert told["status"] == "error" and set(told) == {"status", "message"}
    assert "Traceback" not in answer.text and str(ROOT) not in answer.text and "/tmp" not in answer.text
    assert "\n" not in told["message"]
    return told["message"]


def raw(server: Served, *parts: bytes) -> bytes:
    """What a client gets that writes so."""
    with server.connected() as connection:
        for part in parts:
            connection.sendall(part)
        return received(connection)


def head(length: int, boundary: str = "x", *more: str) -> bytes:
    """The lines before a form."""
    lines = ["POST /transcribe HTTP/1.1", "Host: a", f"Content-Type: multipart/form-data; boundary={boundary}", *more]
    return "\r\n".join([*lines, f"Content-Length: {length}", "\r\n"]).encode()


def form(fields: str, boundary: str = "x") -> bytes:
    """A request with a form, written by hand."""
    body = fields.replace("\n", "\r\n").encode()
    return head(len(body), boundary, "Connection: close") + body


def send_for_ever(connection: socket.socket, block: bytes) -> None:
    """Or until the other side closes it: OSError."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        connection.sendall(block)
        time.sleep(0.002)


def open_files(pid: int) -> list[str]:
    """Files on disk that a process holds, but for what it is made of."""
    found = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            name = os.readlink(descriptor)
        except FileNotFoundError:
            continue
        if name.startswith("/") and not name.startswith(("/dev", "/proc", "/sys")):
            found.append(name)
    return found


@pytest.mark.skipif(not shutil.which("curl"), reason="no curl: the contract's command is not run")
def test_the_command_of_the_contract(server, speech):
    url = f"{server.url}/transcribe"
    command = ["curl", "-sS", "-X", "POST", url, "-H", "Content-type: multipart/form-data", "-F", f"file=@{speech}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"status": "OK", "transcription": [[SAID]]}


def test_answers_are_those_of_transcribe(server, folder, speech):
    other = write_sound(folder, "A.B.C BA")
    command = [sys.executable, str(ROOT / "transcribe.py"), "--model-path", "beeps.pth", "--offsets", "--words"]
    done = subprocess.run([*command, "--audio-path", speech, other], cwd=folder, capture_output=True, text=True, check=True)
    for path, line in zip([speech, other], done.stdout.splitlines(), strict=True):
        (reading,) = json.loads(line)["output"]
        answer = server.ask(path, offsets="true", words="1").json()
        assert answer["transcription"] == [[reading["transcription"]]]
        assert answer["offsets"] == [[reading["offsets"]]]
        assert answer["words"] == reading["words"]
        assert answer["duration"] == pytest.approx(soundfile.info(path).duration, abs=1e-3)
        assert " ".join(segment["text"] for segment in answer["segments"]) == reading["transcription"]


def test_each_request_has_a_decoder_of_its_own(server, speech):
    (texts,) = server.ask(speech, decoder="beam", top_paths=3, beam_width=20).json()["transcription"]
    assert texts[0] == SAID and len(set(texts)) == 3
    (found,) = server.ask(speech, decoder="beam", hotwords="CAB:30,BABA").json()["transcription"]
    assert "CAB" in found[0].split()
    assert server.ask(speech).json()["transcription"] == [[SAID]]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"decoder": "quick"}, "greedy or beam"),
        ({"top_paths": "2"}, "decoder=beam can"),
        ({"hotwords": "A"}, "decoder=beam can"),
        ({"decoder": "beam", "beam_width": "0"}, "1 to 512"),
        ({"decoder": "beam", "beam_width": "99999999999999999999"}, "1 to 512"),
        ({"decoder": "beam", "beam_width": "          5e"}, "1 to 512"),
        ({"decoder": "beam", "beam_width": "000000001999"}, "1 to 512"),
        ({"decoder": "beam", "beam_width": "000000001" + "9" * 5000}, "1 to 512"),
        ({"decoder": "beam", "hotwords": "@" * 60000}, "hot"),
        ({"decoder": "beam", "top_paths": "21"}, "1 to 20"),
        ({"decoder": "beam", "top_paths": "two"}, "1 to 20"),
        ({"decoder": "beam", "hotwords": "A:much"}, "A:much"),
        ({"decoder": "beam", "hotwords": "XYZ"}, "no labels"),
        ({"decoder": "beam", "hotwords": ",".join(["A"] * 201)}, "201"),
        ({"offsets": "perhaps"}, "true or false"),
        ({"words": "perhaps"}, "true or false"),
    ],
)
def test_fields_that_make_no_sense_are_told(server, speech, fields, told):
    assert told in refusal(server.ask(speech, **fields), 400)


def test_spaces_around_a_number_are_nothing(server, speech):
    assert server.ask(speech, decoder="beam", beam_width="          5").json()["transcription"][0][0] == SAID


def test_hot_words_name_no_file(server, folder, speech):
    secret = folder / "secret"
    secret.write_text("AB\n")
    for name in (secret, "keys.txt", "/etc/passwd"):
        answer = server.ask(speech, decoder="beam", hotwords=str(name))
        assert answer.status_code == 400 and f"hot word '{name}'" in answer.json()["message"]


def test_what_is_no_form_with_a_file(server, speech):
    assert "no file" in refusal(httpx.post(f"{server.url}/transcribe"), 400)
    assert "no file" in refusal(httpx.post(f"{server.url}/transcribe", content=speech.read_bytes()), 400)
    assert "no file" in refusal(httpx.post(f"{server.url}/transcribe", data={"file": "a.wav"}), 400)
    assert "no file" in refusal(httpx.post(f"{server.url}/transcribe", files={"audio": speech.read_bytes()}), 400)
    two = [("file", speech.read_bytes()), ("other", speech.read_bytes())]
    refusal(httpx.post(f"{server.url}/transcribe", files=two), 400)
    refusal(server.ask(speech, decoder="x" * 70000), 400)
    refusal(httpx.post(f"{server.url}/transcribe", files={"file": b""}, data={f"f{i}": "1" for i in range(40)}), 400)


@pytest.mark.parametrize(
    "request_",
    [
        form("--x\nnonsense"),
        form("--x\nContent-Disposition: form-data\n\nhello\n--x--\n"),
        form('--x\nContent-Disposition: form-data; name="file"; filename="a"\n\nhello'),
        form('--y\nContent-Disposition: form-data; name="file"; filename="a"\n\nhello\n--y--\n'),
        form("", boundary=""),
        form('--x\nContent-Disposition: form-data; name="decoder"\n\n\\ud800\n--x--\n', "x; charset=unicode_escape"),
        form('--x\nContent-Disposition: form-data; name="decoder"\n\nb\n--x--\n', "x; charset=undefined"),
        form('--x\nContent-Disposition: form-data; name="decoder"\n\nb\n--x--\n', "x; charset=hex"),
        form('--x\nContent-Disposition: form-data; name="' + "n" * 5000 + '"\n\nb\n--x--\n'),
        b"POST /transcribe HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST /transcribe HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"y" * 100000 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
    ids=lambda request_: str(request_[-40:]),
)
def test_broken_requests(server, request_):
    assert raw(server, request_).startswith(b"HTTP/1.1 400 ")


def test_forms_are_utf8_and_as_they_are(server, speech):
    part = '--x\r\nContent-Disposition: form-data; name="{}"{}\r\n\r\n'
    fields = part.format("language", "") + "\\ud800 日\r\n" + part.format("response_format", "") + "verbose_json\r\n"
    body = (fields + part.format("file", '; filename="a"')).encode() + speech.read_bytes() + b"\r\n--x--\r\n"

    def ask(charset: str, **headers: str) -> httpx.Response:
        kind = {"Content-Type": f"multipart/form-data; boundary=x{charset}"}
        return httpx.post(f"{server.url}/v1/audio/transcriptions", content=body, headers=kind | headers)

    for charset in ("", "; charset=UTF-8", '; charset="utf-8"'):
        answer = ask(charset).json()
        assert (answer["text"], answer["language"]) == (SAID, "\\ud800 日")
    for charset in ("; charset=unicode_escape", "; charset=punycode", "; charset=x"):
        assert ask(charset).status_code == 400
    packed = ask("", **{"Content-Encoding": "gzip"})
    assert packed.status_code == 415 and "gzip" in packed.json()["error"]["message"]


def test_unknown_addresses_and_methods(server):
    assert refusal(httpx.get(f"{server.url}/nothing"), 404)
    assert refusal(httpx.get(f"{server.url}/transcribe/"), 404)
    answer = httpx.get(f"{server.url}/transcribe")
    assert refusal(answer, 405) and answer.headers["Allow"] == "POST"
    refusal(httpx.request("DELETE", f"{server.url}/metrics"), 405)
    refusal(httpx.request("BREW", f"{server.url}/transcribe"), 405)
    assert httpx.get(f"{server.url}/stream").status_code == 404
    assert httpx.head(f"{server.url}/health/live").status_code == 200


@pytest.mark.parametrize(
    "path",
    "/page/../app.py /page/..%2fapp.py /page/%2e%2e%2f%2e%2e%2fserver.py /page//etc/passwd /page/%00 /page/. /page/ "
    "/page/....//app.py /page/C:%5Cx /page/index.html%00.js //page/..%2f..%2fkeys.txt".split(),
)
def test_the_page_is_no_way_to_other_files(server, path):
    answer = raw(server, f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"import" not in answer and b"root:" not in answer


def test_security_headers(server, speech):
    page = httpx.get(f"{server.url}/")
    assert page.status_code == 200 and page.headers["Content-Type"].startswith("text/html")
    for answer in (page, httpx.get(f"{server.url}/nothing"), server.ask(speech), httpx.get(f"{server.url}/page/index.html")):
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "unsafe" not in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert "Server" not in answer.headers
    assert server.ask(speech).headers["Cache-Control"] == "no-store"


def test_too_much_is_refused_before_it_has_come(server):
    began = time.monotonic()
    answer = raw(server, head(99999999999, "x", "Connection: close", "Expect: 100-continue"))
    assert answer.startswith(b"HTTP/1.1 413 ") and b"2 MiB" in answer
    assert time.monotonic() - began < 5
    # A body without a length that never ends: it is answered, and then cut off.
    chunked = head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    with server.connected() as endless:
        endless.sendall(chunked + b"%x\r\n%b\r\n" % (len(PART), PART))
        with pytest.raises(OSError):
            send_for_ever(endless, b"10000\r\n" + bytes(65536) + b"\r\n")
        assert endless.recv(20).startswith(b"HTTP/1.1 413 ")
    until(lambda: server.metric("asr_requests_under_way") == 0)


def test_what_is_no_recording(server, folder):
    assert "not audio" in refusal(server.ask(b"hello, world"), 415)
    assert "not audio" in refusal(server.ask(ROOT / "server.py"), 415)
    assert "empty" in refusal(server.ask(b""), 422)
    whole = write_sound(folder, "ABC").read_bytes()
    assert "truncated" in refusal(server.ask(whole[:-1000]), 422)
    assert "no samples" in refusal(server.ask(whole[:40] + bytes(4)), 422)
    short = io.BytesIO()
    soundfile.write(short, np.zeros(20), RATE, format="wav")
    assert "audio: " in refusal(server.ask(short.getvalue()), 422)


def test_hours_of_silence_in_a_small_file(server):
    small = io.BytesIO()
    soundfile.write(small, np.zeros(8000 * 3600 * 2, np.int16), 8000, format="flac")
    assert len(small.getvalue()) < 2**20
    heard, began = server.metric("asr_audio_seconds_total"), time.monotonic()
    assert "40 s" in refusal(server.ask(small.getvalue()), 413)
    assert time.monotonic() - began < 10
    assert server.metric("asr_audio_seconds_total") == heard


def test_half_an_hour_does_not_hold_up_seconds(ear, speech):
    wave = np.tile(sound(f"{SAID} ..")[0], 1800 * RATE // len(sound(f"{SAID} ..")[0]))
    long = io.BytesIO()
    soundfile.write(long, wave, RATE, format="flac")
    with in_thread(ear, max_upload_mb=200) as server:
        answers = []
        asking = threading.Thread(target=lambda: answers.append(server.ask(long.getvalue())))
        asking.start()
        until(lambda: server.metric("asr_audio_seconds_total") > 10)
        for _ in range(5):
            before = server.metric("asr_audio_seconds_total")
            assert server.ask(speech).json()["transcription"] == [[SAID]]
            assert server.metric("asr_audio_seconds_total") - before < 300
        assert not answers
        asking.join(120)
        assert answers[0].json()["transcription"] == [[" ".join([SAID] * (len(wave) // len(sound(f"{SAID} ..")[0])))]]


def test_the_openai_client(server, speech):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    (model,) = client.models.list().data
    assert client.models.retrieve(model.id).id == model.id == "beeps.pth"

    def ask(**options):
        with speech.open("rb") as file:
            return client.audio.transcriptions.create(model=model.id, file=file, **options)

    assert ask().text == SAID
    assert ask(response_format="text") == SAID + "\n"
    assert "-->" in ask(response_format="srt") and ask(response_format="vtt").startswith("WEBVTT")
    both = ask(response_format="verbose_json", language="en", timestamp_granularities=["word", "segment"])
    assert (both.text, both.language) == (SAID, "en")
    assert [word.word for word in both.words] == SAID.split()
    assert 0 <= both.words[0].start < both.words[0].end <= both.words[1].start < both.duration
    assert " ".join(segment.text for segment in both.segments) == SAID
    assert ask(response_format="verbose_json", timestamp_granularities=["word"]).segments is None
    assert ask(response_format="verbose_json").words is None
    assert ask(prompt="Beeps", temperature=0.2).text == SAID


def test_the_openai_client_s_errors(server, locked, speech):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    create = client.audio.transcriptions.create
    with pytest.raises(openai.BadRequestError, match="response_format"):
        create(model="m", file=speech.read_bytes(), response_format="diarized_json")
    with pytest.raises(openai.BadRequestError, match="word or segment"):
        create(model="m", file=speech.read_bytes(), timestamp_granularities=["line"], response_format="verbose_json")
    with pytest.raises(openai.UnprocessableEntityError, match="truncated"):
        create(model="m", file=speech.read_bytes()[:-1000])
    with pytest.raises(openai.APIStatusError, match="not audio") as unknown:
        create(model="m", file=b"hello, world")
    assert unknown.value.status_code == 415 and unknown.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError, match="stream: answers come whole"):
        create(model="m", file=speech, stream=True)
    with pytest.raises(openai.NotFoundError, match=r"beeps\.pth"):
        client.models.retrieve("whisper-1")
    with pytest.raises(openai.AuthenticationError, match="needs a key"):
        openai.OpenAI(base_url=f"{locked.url}/v1", api_key="wrong", max_retries=0).models.list()
    assert openai.OpenAI(base_url=f"{locked.url}/v1", api_key=KEY, max_retries=0).models.list().data


def test_no_room_to_store_a_recording(ear, speech, monkeypatch, tmp_path, capfd):
    with in_thread(ear) as server:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
        answer = server.ask(speech)
        assert "no room" in refusal(answer, 503) and answer.headers["Retry-After"] == "1"
        monkeypatch.undo()
        assert server.ask(speech).json()["transcription"] == [[SAID]]
    assert "warning: a recording was refused: " in capfd.readouterr().err


def test_addresses_as_proxies_are_asked(server):
    for address in (b"http://a/health/live", b"HTTP://a:80/health/live", b"https://[::1]/health/live"):
        assert raw(server, b"GET " + address + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").startswith(
            b"HTTP/1.1 200 "
        )


def test_health_and_metrics(server, speech):
    assert httpx.get(f"{server.url}/health/live").json() == {"status": "live"}
    assert httpx.get(f"{server.url}/health/ready").json() == {"status": "ready"}
    answered = server.metric('asr_requests_total{code="200",route="/transcribe"}')
    heard = server.metric("asr_audio_seconds_total")
    server.ask(speech)
    assert server.metric('asr_requests_total{code="200",route="/transcribe"}') == answered + 1
    assert server.metric("asr_audio_seconds_total") == pytest.approx(heard + soundfile.info(speech).duration, abs=1e-3)
    assert server.metric('asr_request_seconds_count{route="/transcribe"}') > answered
    assert server.metric("asr_queue_seconds_count") == server.metric('asr_batch_size_bucket{le="1.0"}') > 0
    httpx.get(f"{server.url}/one-of-a-million-names")
    assert "million" not in httpx.get(f"{server.url}/metrics").text


def test_keys(locked, speech):
    assert "needs a key" in refusal(locked.ask(speech), 401)
    for wrong in (f"Bearer {KEY}x", f"Basic {KEY}", "Bearer", "Bearer # for the tests", KEY, "Bearer \xe9"):
        answer = httpx.get(f"{locked.url}/metrics", headers=[(b"authorization", wrong.encode("latin-1"))])
        assert refusal(answer, 401) and answer.headers["WWW-Authenticate"] == "Bearer"
    for right in (KEY, "another"):
        assert locked.ask(speech, headers={"Authorization": f"Bearer {right}"}).json()["transcription"] == [[SAID]]
    for path in ("/health/live", "/health/ready", "/", "/page/index.html", "/info"):
        assert httpx.get(locked.url + path).status_code == 200
    for path in ("/metrics", "/v1/models", "/nothing", "/stream", "//page/metrics", "/information", "/healthy"):
        refused = httpx.get(locked.url + path)
        assert refused.status_code == 401 and KEY not in refused.text
    for path in (b"/page/../metrics", b"http://a/metrics", b"http://a/page/../metrics", b"/page/%2e%2e/metrics"):
        assert raw(locked, b"GET " + path + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")[9:12] in (b"401", b"404"), (
            path
        )
    # What a client calls the server has no say in what it may do.
    for host in (b"a/page/", b"a/page/?", b"[::1", b"", b"a/health/live#"):
        head = b"GET /metrics HTTP/1.1\r\nHost: " + host + b"\r\nConnection: close\r\n\r\n"
        assert raw(locked, head)[:12] in (b"HTTP/1.1 401", b"HTTP/1.1 400"), host


def test_a_key_is_looked_at_before_the_body(locked):
    assert raw(locked, head(1000000, "x", "Connection: close")).startswith(b"HTTP/1.1 401 ")


def test_other_pages_are_let_in_by_name(server, locked, speech):
    allow = "Access-Control-Allow-Origin"
    assert allow not in server.ask(speech, headers={"Origin": ORIGIN}).headers
    assert allow not in httpx.options(f"{server.url}/transcribe", headers={"Origin": ORIGIN}).headers
    mine = {"Origin": ORIGIN, "Authorization": f"Bearer {KEY}"}
    assert locked.ask(speech, headers=mine).headers[allow] == ORIGIN
    asked = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    preflight = httpx.options(f"{locked.url}/transcribe", headers=asked)
    assert preflight.status_code == 204 and preflight.headers[allow] == ORIGIN
    assert "authorization" in preflight.headers["Access-Control-Allow-Headers"]
    other = locked.ask(speech, headers={**mine, "Origin": "https://evil.example"})
    assert allow not in other.headers
    assert httpx.options(f"{locked.url}/transcribe", headers={**asked, "Origin": "null"}).status_code == 401


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_nothing_is_left_of_who_goes_away(server, folder):
    pid, before = server.process.pid, open_files(server.process.pid)
    with server.connected() as connection:
        connection.sendall(head(1900000) + PART + bytes(1500000))
        until(lambda: len(open_files(pid)) > len(before))  # it is on the disk, under no name
        assert any("(deleted)" in name for name in open_files(pid))
        assert server.metric("asr_requests_under_way") == 1
    until(lambda: server.metric("asr_requests_under_way") == 0)
    until(lambda: len(open_files(pid)) == len(before))
    assert server.metric('asr_requests_total{code="499",route="/transcribe"}') >= 1
    large = sound("ABC" * 8)[0][: 39 * RATE]
    content = io.BytesIO()
    soundfile.write(content, large, RATE, format="wav")
    for _ in range(3):  # on the disk, too
        assert server.ask(content.getvalue() + bytes(2**20 - 2000)).status_code == 200
    until(lambda: len(open_files(pid)) == len(before))


def test_no_room_and_no_time(ear, speech):
    gate = threading.Event()
    heard = ear.hear
    ear.hear = lambda pieces: (gate.wait(30), heard(pieces))[1]
    try:
        gate.set()
        with in_thread(ear, max_queue=2, timeout=2.0) as server:
            gate.clear()
            answers = []
            clients = [threading.Thread(target=lambda: answers.append(server.ask(speech))) for _ in range(2)]
            for client in clients:
                client.start()
            until(lambda: server.metric("asr_requests_under_way") == 2)
            full = server.ask(speech)
            assert "try again" in refusal(full, 503) and int(full.headers["Retry-After"]) >= 1
            client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
            with pytest.raises(openai.InternalServerError, match="try again"):
                client.audio.transcriptions.create(model="m", file=speech.read_bytes())
            for client in clients:
                client.join()
            assert [refusal(answer, 504) for answer in answers] == ["not done within 2 s: send less, or try again later"] * 2
            gate.set()
            assert server.ask(speech).json()["transcription"] == [[SAID]]
    finally:
        del ear.hear


def test_who_goes_away_leaves_the_queue(ear, speech):
    gate = threading.Event()
    gate.set()
    heard, batches = ear.hear, []
    ear.hear = lambda pieces: (gate.wait(30), batches.append(len(pieces)), heard(pieces))[2]
    try:
        with in_thread(ear) as server:
            gate.clear()
            first = threading.Thread(target=server.ask, args=[speech])
            first.start()
            until(lambda: server.metric("asr_requests_under_way") == 1)
            time.sleep(0.2)  # it is being heard
            body = PART + speech.read_bytes() + b"\r\n--x--\r\n"
            with server.connected() as connection:
                connection.sendall(head(len(body)) + body)
                until(lambda: server.metric("asr_requests_under_way") == 2)
                time.sleep(0.2)  # it waits
            until(lambda: server.metric("asr_requests_under_way") == 1)
            del batches[:]
            gate.set()
            first.join()
            assert server.ask(speech).json()["transcription"] == [[SAID]]
            assert batches == [1, 1]  # the one that was being heard, and the last
    finally:
        del ear.hear


def test_who_stalls_is_told(ear, monkeypatch):
    monkeypatch.setattr(serving.requests, "STALLED", 0.3)
    monkeypatch.setattr(serving.connections, "HEADER_SECONDS", 0.3)
    monkeypatch.setattr(serving.connections, "UNWANTED_SECONDS", 0.3)
    with in_thread(ear) as server:
        assert raw(server, head(900, "x", "Connection: close") + b"--x").startswith(b"HTTP/1.1 408 ")
        # A byte now and then is no way to stay either, in a body or in headers, nor in those of a second request.
        whole = b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n"
        for beginning in (head(10**7), b"GET / HTTP/1.1\r\nX: ", whole):
            with server.connected() as connection:
                connection.sendall(beginning)
                if beginning is whole:
                    assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
                with pytest.raises(OSError):
                    send_for_ever(connection, b"x")


def test_a_fault_of_the_network_is_told_to_nobody_but_us(ear, speech, capfd):
    heard = ear.hear

    def broken(pieces):
        if any(piece.seconds > 2.5 for piece, _ in pieces):
            raise ValueError("secret of the network")
        return heard(pieces)

    with in_thread(ear) as server:
        ear.hear = broken
        try:
            longer = write_sound(speech.parent, "ABC CBA ABC")
            answer = server.ask(longer)
            assert refusal(answer, 500) == "an error of the server, which has logged it"
            assert server.ask(speech).json()["transcription"] == [[SAID]]
            assert server.metric('asr_requests_total{code="500",route="/transcribe"}') == 1
        finally:
            del ear.hear
    assert "secret of the network" in capfd.readouterr().err


def test_what_the_model_says_of_itself(server, locked):
    about = httpx.get(f"{server.url}/info").json()
    assert about["model"] == "beeps.pth" and about["sample_rate"] == RATE
    assert (about["streaming"], about["key_needed"], about["max_upload_mb"]) == (False, False, 2)
    assert httpx.get(f"{locked.url}/info").json() == {"key_needed": True}, "no more is told to whoever has none"
    assert httpx.get(f"{locked.url}/info", headers={"Authorization": f"Bearer {KEY}"}).json()["model"] == "beeps.pth"
