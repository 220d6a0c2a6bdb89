"""The page in a real browser: Debian's Chromium, with a recording for a microphone.

Most tests talk to a stand-in, which serves the page's files under the server's own Content-Security-Policy and gives canned
answers, so that confidences, readings and mishaps are as a test needs them; the last ones talk to `python server.py`.
"""

import base64
import io
import json
import os
import shutil
import socket
import struct
import threading
import time
import urllib.request
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import soundfile
import uvicorn
from beep_network import save_beep_network
from beeps import start, write_utterance
from starlette.applications import Starlette
from starlette.responses import FileResponse, JSONResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles

from serving.app import CONTENT_SECURITY, PAGE

browsers = pytest.importorskip("playwright.sync_api", reason="no playwright (requirements-browser.txt): the page is not tested")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe-playwright-python (requirements-browser.txt)")

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium (apt-get install chromium): the page is not tested")

SAID = "AB C BA CAB"
WAIT = 20000  # ms: the machine may be busy
WORDS = [  # where write_utterance puts SAID
    {"word": "AB", "start": 0.1, "end": 0.45, "confidence": 0.97},
    {"word": "C", "start": 0.75, "end": 0.9, "confidence": 0.71},
    {"word": "BA", "start": 1.2, "end": 1.55, "confidence": 0.42},
    {"word": "CAB", "start": 1.85, "end": 2.4, "confidence": 0.99},
]


class Server:
    """The stand-in on loopback. With a `key`, every request must have it."""

    def __init__(self, key: str = ""):
        self.key = key
        routes = [
            Route("/", lambda _request: FileResponse(PAGE / "index.html")),
            Route("/info", self.info),
            Route("/transcribe", self.transcribe, methods=["POST"]),
            WebSocketRoute("/stream", self.stream),
            Mount("/page", StaticFiles(directory=PAGE)),
        ]
        app = Starlette(routes=routes)

        async def secured(scope, receive, send):
            async def with_policy(message):
                if message["type"] == "http.response.start":
                    message["headers"] = [*message["headers"], (b"content-security-policy", CONTENT_SECURITY.encode())]
                await send(message)

            await app(scope, receive, with_policy)

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        self.uvicorn = uvicorn.Server(
            uvicorn.Config(secured, port=int(self.url.rpartition(":")[2]), log_level="warning", lifespan="off")
        )
        self.thread = threading.Thread(target=self.uvicorn.run)
        self.thread.start()
        while not self.uvicorn.started:
            assert self.thread.is_alive()
            time.sleep(0.02)

    def close(self) -> None:
        self.uvicorn.should_exit = True
        self.thread.join()

    def refuses(self, request) -> bool:
        return bool(self.key) and request.headers.get("authorization") != f"Bearer {self.key}"

    async def info(self, _request) -> JSONResponse:
        known = {"model": "beeps.pth", "streaming": True, "sample_rate": 16000, "language_model": False}
        return JSONResponse({**known, "max_upload_mb": 1, "max_audio_seconds": 60, "key_needed": bool(self.key)})

    async def transcribe(self, request) -> JSONResponse:
        if self.refuses(request):
            return JSONResponse({"status": "error", "message": "the key is missing or wrong"}, 401)
        async with request.form() as form:
            content = await form["file"].read()
            options = dict(form)
        if content[:4] != b"RIFF":
            return JSONResponse({"status": "error", "message": f"{form['file'].filename}: not a recording"}, 415)
        best = [SAID, "AB C BA CA"] if options["decoder"] == "beam" else [SAID]
        duration = (len(content) - 44) / 32000
        segments = [{"start": 0.1, "end": 0.9, "text": "AB C"}, {"start": 1.2, "end": 2.4, "text": "BA CAB"}]
        answer = {"status": "OK", "transcription": [best]}
        if options.get("words") == "true":
            answer |= {"duration": duration, "words": WORDS, "segments": segments}
        return JSONResponse(answer)

    async def stream(self, socket) -> None:
        """A partial text after every half second, a final after every second."""
        await socket.accept()
        first = await socket.receive_json()
        if self.key and first.get("key") != self.key:
            await socket.send_json({"error": "the key is missing or wrong"})
            await socket.close(1008)
            return
        heard, told = 0, 0
        while (message := await socket.receive()).get("bytes"):
            heard += len(message["bytes"]) / 2 / first["rate"]
            if heard >= told + 1:
                await socket.send_json({"final": f"SECOND {told}", "start": told, "end": told + 1, "words": second(told)})
                told += 1
            elif heard >= told + 0.5:
                await socket.send_json({"partial": f"HALF {told}"})
        if message["type"] == "websocket.receive":
            assert json.loads(message["text"]) == {"eof": 1}
            await socket.send_json({"final": "", "start": heard, "end": heard, "words": []})
            await socket.close()


def ask(url: str, path: Path, **fields: str) -> dict:
    """What /transcribe answers without a browser."""
    parts = [f'--+\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields.items()]
    head = f'--+\r\nContent-Disposition: form-data; name="file"; filename="{path.name}"\r\n\r\n'
    body = ("".join(parts) + head).encode() + path.read_bytes() + b"\r\n--+--\r\n"
    request = urllib.request.Request(f"{url}/transcribe", body, {"Content-Type": "multipart/form-data; boundary=+"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


def second(start: int) -> list[dict]:
    times = [(start + 0.1, start + 0.5), (start + 0.5, start + 0.9)]
    words = ("SECOND", str(start))
    return [{"word": w, "start": s, "end": e, "confidence": 0.9} for w, (s, e) in zip(words, times, strict=True)]


@pytest.fixture(scope="module")
def server():
    with closing(Server()) as running:
        yield running


class RealServer:
    """`python server.py` with a network that reads beeps."""

    def __init__(self, folder: Path, **network: bool):
        model = save_beep_network(folder / "beeps.pth", **network)
        flags = ["--model-path", model, "--host", "127.0.0.1", "--port", 0, "--max-upload-mb", 1]
        self.process = start("server.py", *flags, cwd=folder)
        told = self.process.stdout.readline()
        assert "http://" in told, self.process.communicate()[1]
        self.url = told.split()[-1].rstrip("/")
        while not self.ready():
            assert self.process.poll() is None, self.process.communicate()[1]
            time.sleep(0.05)

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health/ready", timeout=10):
                return True
        except OSError:
            return False

    def close(self) -> None:
        self.process.terminate()
        _, complaints = self.process.communicate(timeout=60)
        assert complaints == ""


@pytest.fixture(scope="module")
def spoken(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("spoken")
    write_utterance(folder, "beeps", SAID)
    return folder / "beeps.wav"


@pytest.fixture(scope="module")
def browser(spoken):
    flags = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    flags += [f"--use-file-for-fake-audio-capture={spoken}", "--autoplay-policy=user-gesture-required"]
    with browsers.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield chromium
        chromium.close()


# Keeps what is sent as files: the browser does not tell its remote control what is in them.
KEEP_FORMS = """
window.forms = [];
const send = XMLHttpRequest.prototype.send;
XMLHttpRequest.prototype.send = function (form) { window.forms.push(form); send.call(this, form); };
document.addEventListener("securitypolicyviolation", ({ violatedDirective, blockedURI }) =>
    console.error("policy", violatedDirective, blockedURI));
"""
READ_FORM = """
async () => Promise.all([...window.forms.at(-1)].map(async ([name, value]) => [name, typeof value === "string" ? value :
    [value.name, btoa(Array.from(new Uint8Array(await value.arrayBuffer()), (byte) => String.fromCharCode(byte)).join(""))]]))
"""


class Visit:
    """A page opened in a window of its own, and all it complained of and asked for."""

    def __init__(self, browser, server, **settings):
        self.context = browser.new_context(**{"locale": "en-GB", "viewport": {"width": 1280, "height": 900}} | settings)
        self.context.add_init_script(KEEP_FORMS)
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT)
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.frames: list[str | bytes] = []
        self.page.on("console", lambda message: self.complaints.append(message.text) if message.type != "log" else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("websocket", lambda live: live.on("framesent", lambda frame: self.frames.append(frame)))
        self.page.goto(server.url)
        self.page.wait_for_selector("#model:not(:empty)")

    def choose(self, *names: str, name: str = "", content: bytes = b"") -> None:
        files = {"name": name, "mimeType": "audio/wav", "buffer": content} if name else list(names)
        self.page.set_input_files("#file", files)

    def sent(self) -> dict:
        """The form last sent: its texts, and its file as (name, bytes)."""
        fields = dict(self.page.evaluate(READ_FORM))
        return fields | {"file": (fields["file"][0], base64.b64decode(fields["file"][1]))}

    def texts(self, selector: str) -> list[str]:
        return self.page.locator(selector).all_inner_texts()


@pytest.fixture
def visit(browser, server):
    """Opens pages; at the end none may have complained or asked for anything elsewhere."""
    visits = []

    def open_page(to=server, **settings) -> Visit:
        visits.append(Visit(browser, to, **settings))
        return visits[-1]

    yield open_page
    for visited in visits:
        visited.context.close()
        assert visited.complaints == []
        assert [url for url in visited.asked if not url.startswith(("http://127.0.0.1:", "blob:http://127.0.0.1:"))] == []


def test_a_file_becomes_words_with_confidences(visit, server, spoken):
    answer = ask(server.url, spoken, words="true", decoder="greedy")
    window = visit()
    window.choose(spoken)
    window.page.wait_for_selector("#words button")
    assert window.texts("#words button") == [word["word"] for word in answer["words"]]
    labels = [button.get_attribute("aria-label") for button in window.page.locator("#words button").all()]
    assert labels == [f"{word['word']}, {round(100 * word['confidence'])} %" for word in answer["words"]]
    lines = window.page.evaluate("[...document.querySelectorAll('#words button')].map(b => getComputedStyle(b).textDecoration)")
    kinds = ["wavy" if "wavy" in line else "dotted" if "dotted" in line else "" for line in lines]
    levels = [word["confidence"] for word in answer["words"]]
    assert kinds == ["wavy" if level < 0.5 else "dotted" if level < 0.85 else "" for level in levels]
    assert answer["transcription"][0][0] in window.texts("#status")[0]
    assert window.texts("#source") == [f"beeps.wav · {answer['duration']:.1f} s"]
    assert not window.page.locator("#best").is_visible(), "one reading needs no list"
    sent = window.sent()
    assert sent["file"] == ("beeps.wav", spoken.read_bytes())
    assert (sent["decoder"], sent["words"]) == ("greedy", "true")


def test_beam_search_is_asked_for_and_its_readings_listed(visit, server, spoken):
    options = {"decoder": "beam", "beam_width": "16", "top_paths": "3", "hotwords": "CAB:4"}
    answer = ask(server.url, spoken, **options)
    window = visit()
    window.page.click("summary")
    assert window.page.locator("#hotwords").is_disabled()
    window.page.select_option("#decoder", "beam")
    window.page.fill("#beam-width", "16")
    window.page.fill("#top-paths", "3")
    window.page.fill("#hotwords", " CAB:4 ")
    window.choose(spoken)
    window.page.wait_for_selector("#best li")
    assert window.texts("#best li") == answer["transcription"][0]
    assert {name: window.sent()[name] for name in options} == options


def test_a_click_or_enter_on_a_word_plays_it(visit, spoken):
    window = visit()
    window.choose(spoken)
    window.page.locator("#words button").nth(3).click()
    window.page.wait_for_selector('#listen[data-playing="1.85-2.4"]')
    assert window.texts("#detail") == ["CAB · 99 % · 1.85 to 2.40 s"]
    window.page.wait_for_selector("#words button.playing >> text=CAB")
    window.page.wait_for_selector("#listen:not([data-playing])")
    assert float(window.page.input_value("#seek")) == pytest.approx(2.4)
    window.page.keyboard.press("ArrowLeft")
    assert window.page.evaluate("document.activeElement.textContent") == "BA"
    window.page.keyboard.press("Enter")
    window.page.wait_for_selector('#listen[data-playing="1.2-1.55"]')
    window.page.keyboard.press("Home")
    assert window.page.evaluate("document.activeElement.textContent") == "AB"
    assert window.page.locator("#words [tabindex='0']").count() == 1, "all words are one tab stop"


def test_the_whole_plays_from_where_one_clicks(visit, spoken):
    window = visit()
    window.choose(spoken)
    timeline = window.page.locator(".timeline-content")
    timeline.wait_for()
    box = timeline.bounding_box()
    window.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 40)
    duration = soundfile.info(spoken).duration
    assert float(window.page.input_value("#seek")) == pytest.approx(duration / 2, abs=0.02)
    window.page.click("#play")
    window.page.wait_for_function("() => document.getElementById('seek').value > 1.6")
    assert window.texts("#play") == ["Stop"]
    window.page.click("#play")
    assert 1.6 < float(window.page.input_value("#seek")) < duration
    window.page.locator(".timeline-word >> text=CAB").click()
    window.page.wait_for_selector('#listen[data-playing="1.85-2.4"]')


def test_tones_are_seen_where_they_are(visit, spoken):
    """The letters are tones of 400, 900 and 1600 Hz: in the spectrogram's columns they are the brightest row."""
    window = visit()
    window.choose(spoken)
    window.page.wait_for_selector(".timeline canvas")
    peaks = window.page.evaluate("""async () => {
        const { Spectrum } = await import("/page/spectrum.js");
        const spectrum = new Spectrum(16000);
        const loudest = (hertz, level) => {
            const wave = Float32Array.from({ length: 1600 }, (_, i) => level * Math.sin(2 * Math.PI * hertz * i / 16000));
            const levels = Array.from(spectrum.at(wave, 800));
            const best = Math.max(...levels);
            return [levels.indexOf(best) * 16000 / spectrum.size, best];
        };
        return [loudest(1000, 1), loudest(4000, 0.1), spectrum.at(new Float32Array(10), 4000).every((level) => level < -100)];
    }""")
    assert peaks == [[1000, pytest.approx(0, abs=0.1)], [4000, pytest.approx(-20, abs=0.1)], True]
    rows = window.page.evaluate("""(duration) => {
        const [wave, height] = [72, 144];
        const tiles = [...document.querySelectorAll(".timeline canvas")].map((canvas) => [
            canvas.offsetLeft, canvas.width, canvas.getContext("2d").getImageData(0, wave, canvas.width, height).data]);
        return [0.175, 0.375, 0.825].map((seconds) => {
            const x = seconds / duration * document.querySelector(".timeline-content").clientWidth;
            const [left, width, data] = tiles.find(([left, width]) => left <= x && x < left + width);
            const shade = (row) => data[4 * (row * width + Math.round(x - left))];
            let darkest = 0;
            for (let row = 0; row < height; row++) if (shade(row) < shade(darkest)) darkest = row;
            return 8000 * (1 - (darkest + 0.5) / height);
        });
    }""", soundfile.info(spoken).duration)  # fmt: skip
    assert rows == [pytest.approx(hertz, abs=60) for hertz in (400, 900, 1600)]


def test_a_long_recording_is_drawn_only_where_one_looks(visit):
    window = visit()
    wave = io.BytesIO()
    soundfile.write(wave, np.random.default_rng(1).normal(0, 0.1, 16000 * 30), 16000, format="WAV", subtype="PCM_16")
    window.choose(name="long.wav", content=wave.getvalue())
    window.page.wait_for_selector(".timeline canvas")
    for _ in range(4):
        window.page.click("#zoom-in")
    window.page.evaluate("document.getElementById('timeline').scrollLeft = 1e6")
    window.page.wait_for_function("""() => [...document.querySelectorAll(".timeline canvas")].some(
        (canvas) => canvas.offsetLeft + canvas.offsetWidth >= canvas.parentElement.offsetWidth - 1)""")
    assert 1 < window.page.locator(".timeline canvas").count() < 20
    assert window.page.evaluate("document.documentElement.scrollWidth") == 1280, "only the timeline scrolls sideways"


def test_text_and_subtitles_are_saved_and_copied(visit, server, spoken):
    window = visit(permissions=["clipboard-read", "clipboard-write"])
    window.choose(spoken)
    window.page.wait_for_selector("#words button")
    with window.page.expect_download() as text:
        window.page.click("#save-text")
    assert (text.value.suggested_filename, text.value.path().read_text()) == ("beeps.txt", f"{SAID}\n")
    with window.page.expect_download() as srt:
        window.page.click("#save-srt")
    assert srt.value.suggested_filename == "beeps.srt"
    assert srt.value.path().read_text() == (
        "1\n00:00:00,100 --> 00:00:00,900\nAB C\n\n2\n00:00:01,200 --> 00:00:02,400\nBA CAB\n"
    )
    window.page.click("#copy")
    window.page.wait_for_selector("#copy >> text=Copied")
    assert window.page.evaluate("navigator.clipboard.readText()") == SAID


def likeness(recorded: np.ndarray, played: np.ndarray) -> float:
    """The highest correlation of `recorded` with any part of `played`, which the fake microphone repeats."""
    played = np.concatenate([played, played, played])
    size = 2 ** int(np.ceil(np.log2(len(played) + len(recorded))))
    products = np.fft.irfft(np.fft.rfft(played, size) * np.conj(np.fft.rfft(recorded, size)), size)[
        : len(played) - len(recorded)
    ]
    sums = np.cumsum(np.concatenate([[0], played**2]))
    energies = (sums[len(recorded) :] - sums[: -len(recorded)])[: len(products)]
    return float(np.max(products / np.sqrt(energies * np.sum(recorded**2))))


def test_the_microphone_is_recorded_and_sent_as_wav(visit, spoken):
    window = visit()
    window.page.click("#record")
    window.page.wait_for_selector("#timer >> text=0:02")
    assert window.page.locator("#choose").is_disabled()
    assert window.texts("#status") == ["Recording"]
    window.page.click("#record")
    window.page.wait_for_selector("#words button")
    name, content = window.sent()["file"]
    recorded, rate = soundfile.read(io.BytesIO(content))
    assert (name, rate, recorded.ndim) == ("recording.wav", 16000, 1)
    assert soundfile.info(io.BytesIO(content)).subtype == "PCM_16"
    assert struct.unpack("<I", content[4:8])[0] == len(content) - 8
    assert 2 < len(recorded) / rate < 4
    played, _ = soundfile.read(spoken)
    assert likeness(recorded[8000:24000], played) > 0.95
    assert window.page.locator("#record").inner_text() == "Record"


def test_another_rate_is_resampled_in_pieces(visit):
    """Firefox does not resample the microphone: then the page does, to the same samples whatever the pieces."""
    made = visit().page.evaluate("""async () => {
        const { Resampler } = await import("/page/microphone.js");
        const resampled = (from, to, hertz, piece) => {
            const wave = Float32Array.from({ length: from }, (_, i) => Math.sin(2 * Math.PI * hertz * i / from));
            const resampler = new Resampler(from, to);
            const output = [];
            for (let i = 0; i < from; i += piece) output.push(...resampler.push(wave.subarray(i, i + piece)));
            return [...output, ...resampler.flush()];
        };
        return [[48000, 3000, 48000], [48000, 3000, 128], [44100, 3000, 1000], [48000, 9500, 2048], [8000, 3000, 100]].map(
            ([from, hertz, piece]) => resampled(from, 16000, hertz, piece));
    }""")
    tone = np.sin(2 * np.pi * 3000 * np.arange(16000) / 16000)
    assert [len(wave) for wave in made] == [16000] * 5
    assert made[0] == made[1]
    for wave in (made[0], made[2], made[4]):
        assert np.abs(np.array(wave) - tone)[200:-200].max() < 0.01
    assert np.abs(made[3])[200:-200].max() < 0.01, "what the new rate cannot hold is silent"


def test_live_text_appears_while_one_speaks(visit, spoken):
    window = visit()
    window.page.check("#live")
    assert window.texts("#live-hint") == ["The text appears while you speak."]
    window.page.evaluate("""() => {
        window.partials = [];
        const partial = document.getElementById("partial");
        new MutationObserver(() => window.partials.push(partial.textContent)).observe(partial, { childList: true });
    }""")
    window.page.click("#record")
    window.page.wait_for_selector("#finals >> text=SECOND 1")
    assert window.page.evaluate("[...new Set(window.partials)].filter((text) => text)")[:2] == ["HALF 0", "HALF 1"]
    assert window.texts("#finals p")[:2] == ["SECOND 0", "SECOND 1"], "what is final stays"
    window.page.click("#record")
    window.page.wait_for_selector("#words button")
    assert window.texts("#words button")[:4] == ["SECOND", "0", "SECOND", "1"]
    first, *sound, last = window.frames
    assert (json.loads(first), json.loads(last)) == ({"rate": 16000}, {"eof": 1})
    samples = np.frombuffer(b"".join(sound), "<i2") / 32768
    played, _ = soundfile.read(spoken)
    assert likeness(samples[8000:24000], played) > 0.95
    with window.page.expect_download() as srt:
        window.page.click("#save-srt")
    assert srt.value.path().read_text().startswith("1\n00:00:00,000 --> 00:00:01,000\nSECOND 0\n\n2\n")
    assert window.texts("#error") == [""]


def test_what_is_no_recording_is_refused_in_one_line(visit, server):
    window = visit()
    window.choose(name="notes.wav", content=b"no sound at all")
    window.page.wait_for_selector("#error:not(:empty)")
    assert window.texts("#error") == ["notes.wav: not a recording"]
    assert window.page.locator("#error").get_attribute("role") == "alert"
    assert not window.page.locator("#work").is_visible()
    assert window.complaints == ["Failed to load resource: the server responded with a status of 415 (Unsupported Media Type)"]
    window.complaints.clear()
    window.choose(name="huge.wav", content=bytes(2**20 + 1))
    assert window.texts("#error") == ["huge.wav has 1.0 MB; the server takes up to 1 MB."]
    assert len(window.page.evaluate("window.forms")) == 1, "it was not sent"


def test_a_key_is_asked_for_sent_and_forgotten(visit, browser, spoken):
    with closing(Server(key="open sesame")) as locked:
        window = visit(locked)
        window.choose(spoken)
        window.page.wait_for_selector("#error:not(:empty)")
        assert window.texts("#error") == ["The server wants an API key: enter it under Options."]
        assert window.complaints == ["Failed to load resource: the server responded with a status of 401 (Unauthorized)"]
        window.complaints.clear()
        window.page.check("#live")
        window.page.click("#record")
        window.page.wait_for_selector("#error >> text=the key is missing or wrong")
        window.frames.clear()
        window.page.fill("#key", "open sesame")
        window.choose(spoken)
        window.page.wait_for_selector("#words button >> text=CAB")
        assert window.texts("#error") == [""]
        window.page.click("#record")
        window.page.wait_for_selector("#partial:not(:empty)")
        assert json.loads(window.frames[0]) == {"rate": 16000, "key": "open sesame"}
        kept = window.page.evaluate("[Object.values(sessionStorage), Object.values(localStorage), document.cookie]")
        assert kept == [["open sesame"], [], ""]


def test_a_server_that_is_gone_is_told(visit, browser, spoken):
    gone = Server()
    window = visit(gone)
    window.page.check("#live")
    window.page.click("#record")
    window.page.wait_for_selector("#finals >> text=SECOND 0")
    gone.close()
    window.page.wait_for_selector("#error >> text=closed before its end")
    window.page.wait_for_selector("#words button")
    assert window.texts("#words button")[:2] == ["SECOND", "0"], "what was said is kept"
    window.choose(spoken)
    window.page.wait_for_selector("#error >> text=The server cannot be reached. Is it running?")
    assert all("ERR_CONNECTION" in complaint for complaint in window.complaints), window.complaints
    window.complaints.clear()


def test_an_upload_shows_how_far_it_is_and_can_be_cancelled(visit, server):
    window = visit()
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 100_000}
    window.context.new_cdp_session(window.page).send("Network.emulateNetworkConditions", slow)
    window.choose(name="slow.wav", content=b"RIFF" + bytes(900_000))
    window.page.wait_for_function("() => document.getElementById('progress').value > 5")
    assert window.texts("#work-text") == ["Uploading slow.wav …"]
    window.page.click("#cancel")
    window.page.wait_for_selector("#status >> text=Cancelled.")
    assert not window.page.locator("#work").is_visible()
    assert not window.page.locator("#choose").is_disabled()


def test_a_dropped_file_is_transcribed(visit, spoken):
    window = visit()
    window.page.evaluate(
        """(content) => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([Uint8Array.from(atob(content), (c) => c.charCodeAt(0))], "dropped.wav"));
        const drop = document.getElementById("drop");
        drop.dispatchEvent(new DragEvent("dragover", { dataTransfer: transfer, bubbles: true, cancelable: true }));
        if (!drop.classList.contains("over")) throw new Error("nothing shows that it may be dropped here");
        drop.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
    }""",
        base64.b64encode(spoken.read_bytes()).decode(),
    )
    window.page.wait_for_selector("#words button")
    assert window.sent()["file"] == ("dropped.wav", spoken.read_bytes())


def test_japanese_and_english(visit, spoken):
    window = visit(locale="ja-JP")
    language = "[document.documentElement.lang, document.title, document.getElementById('choose').innerText]"
    assert window.page.evaluate(language) == ["ja", "文字起こし", "ファイルを選ぶ"]
    window.choose(spoken)
    window.page.wait_for_selector("#words button")
    assert window.page.locator("#words button").first.get_attribute("aria-label") == "AB、97 %"
    window.page.select_option("#language", "en")
    assert window.page.evaluate(language) == ["en", "Transcribe", "Choose a file"]
    assert window.page.locator("#words button").first.get_attribute("aria-label") == "AB, 97 %"
    window.page.reload()
    assert window.page.evaluate(language) == ["en", "Transcribe", "Choose a file"], "the choice is kept"


def test_both_languages_say_the_same_things(visit):
    missing = visit().page.evaluate("""async () => {
        const source = await (await fetch("/page/texts.js")).text();
        const entries = (part) => [...part.matchAll(/^    (\\w+):(.*)$/gm)].map(
            ([, key, said]) => [key, ...[...said.matchAll(/\\{\\w+\\}/g)].map(String).sort()].join(" "));
        const [english, japanese] = source.match(/  (en|ja): \\{[^]*?\\n  \\}/g).map(entries);
        const without = (some, others) => some.filter((entry) => !others.includes(entry));
        return [english.length, without(english, japanese), without(japanese, english)];
    }""")
    assert missing[0] > 40
    assert missing[1:] == [[], []]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 375])
def test_it_fits_and_can_be_read_by_everybody(visit, spoken, scheme, width):
    """Rules of WCAG 2.1 A and AA as axe checks them: names, roles, contrast, focus."""
    window = visit(color_scheme=scheme, viewport={"width": width, "height": 800}, reduced_motion="reduce", bypass_csp=True)
    red, green, blue = window.page.evaluate(
        "getComputedStyle(document.documentElement).backgroundColor.match(/\\d+/g).map(Number)"
    )
    assert (red + green + blue < 150) == (scheme == "dark")
    window.page.click("summary")
    window.page.select_option("#decoder", "beam")
    window.choose(name="notes.wav", content=b"no sound at all")
    window.page.wait_for_selector("#error:not(:empty)")
    window.complaints.clear()
    troubles = found_by_axe(window.page)
    window.choose(spoken)
    window.page.wait_for_selector("#best li")
    troubles += found_by_axe(window.page)
    assert troubles == []
    assert window.page.evaluate("document.documentElement.scrollWidth") == width, "nothing sticks out"


def found_by_axe(page) -> list[tuple[str, list]]:
    found = axe.Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]})
    return [(trouble["id"], [node["html"] for node in trouble["nodes"]]) for trouble in found.response["violations"]]


def test_everything_can_be_reached_by_tab_and_shows_it(visit, spoken):
    window = visit()
    window.choose(spoken)
    window.page.wait_for_selector("#words button")
    reached = []
    for _ in range(25):
        window.page.keyboard.press("Tab")
        name, outline = window.page.evaluate("""() => {
            const element = document.activeElement;
            return [element.id || element.textContent.trim(), getComputedStyle(element).outlineStyle];
        }""")
        if name in reached or window.page.evaluate("document.activeElement === document.body"):
            break
        reached.append(name)
        assert outline == "solid", f"{name} does not show that it has the focus"
    wanted = "language choose record live copy save-text save-srt again AB play seek zoom-out zoom-in timeline".split()
    assert [name for name in reached if name in wanted] == wanted


def test_the_server_itself_transcribes_a_recording_and_the_microphone(visit, spoken, tmp_path):
    with closing(RealServer(tmp_path)) as real:
        answer = ask(real.url, spoken, words="true", decoder="beam", top_paths="3")
        window = visit(real)
        window.page.click("summary")
        window.page.select_option("#decoder", "beam")
        window.page.fill("#top-paths", "3")
        window.choose(spoken)
        window.page.wait_for_selector("#best li")
        assert window.texts("#words button") == [word["word"] for word in answer["words"]] != []
        assert window.texts("#best li") == answer["transcription"][0]
        window.page.locator("#words button").first.click()
        window.page.wait_for_selector("#listen[data-playing]")
        window.page.click("#record")
        window.page.wait_for_selector("#timer >> text=0:02")
        window.page.click("#record")
        window.page.wait_for_selector("#source >> text=recording.wav")
        assert set("".join(window.texts("#words button"))) == set("ABC")
        window.page.check("#live")
        assert window.texts("#live-hint") == ["The text appears whenever you pause."]
        window.page.click("#record")
        window.page.wait_for_selector("#timer >> text=0:02")
        window.page.click("#record")
        window.page.wait_for_selector("#live-result", state="hidden")
        assert set("".join(window.texts("#words button"))) == set("ABC")
        window.choose(name="notes.wav", content=b"no sound at all")
        window.page.wait_for_selector("#error >> text=not audio that can be read")
        assert [complaint for complaint in window.complaints if "415" not in complaint] == []
        window.complaints.clear()


def test_the_server_itself_hears_live(visit, tmp_path):
    """With a model that follows streams."""
    with closing(RealServer(tmp_path, bidirectional=False, streaming_norm=True)) as real:
        window = visit(real)
        window.page.check("#live")
        assert window.texts("#live-hint") == ["The text appears while you speak."]
        window.page.click("#record")
        window.page.wait_for_selector("#partial:not(:empty)")
        window.page.click("#record")
        window.page.wait_for_selector("#words button")
        assert set("".join(window.texts("#words button"))) <= set("ABC")
        assert window.texts("#error") == [""]
