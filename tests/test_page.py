"""The page in a real browser: Debian's Chromium.

It talks to a stand-in, which serves the page's files under the server's own Content-Security-Policy and gives canned answers,
so that confidences, readings and mishaps are as a test needs them. In test_page_microphone.py a recording is the microphone,
in test_page_server.py the server is `python server.py`.
"""

import base64
import io
import json
import os
import shutil
import socket
import threading
import time
import urllib.request
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import uvicorn
from beeps import write_utterance
from starlette.applications import Starlette
from starlette.responses import FileResponse, JSONResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles

from serving.app import PAGE
from serving.gate import CONTENT_SECURITY

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
    """The stand-in on loopback. With a `key`, every request must have it; `known` is what /info says besides."""

    def __init__(self, key: str = "", **known):
        self.key = key
        self.known = {"model": "beeps.pth", "streaming": True, "sample_rate": 16000, "language_model": False}
        self.known |= {"decoder": "greedy", "beam_width": 24, "top_paths": 2, "max_upload_mb": 1, "max_audio_seconds": 60}
        self.known |= known
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

    async def info(self, request) -> JSONResponse:
        return JSONResponse({"key_needed": bool(self.key)} | ({} if self.refuses(request) else self.known))

    async def transcribe(self, request) -> JSONResponse:
        if self.refuses(request):
            return JSONResponse({"status": "error", "message": "the key is missing or wrong"}, 401)
        async with request.form() as form:
            content = await form["file"].read()
            options = dict(form)
        if content[:4] != b"RIFF":
            return JSONResponse({"status": "error", "message": "audio: not audio that can be read; expected WAV"}, 415)
        best = [SAID, "AB C BA CA"] if options["decoder"] == "beam" else [SAID]
        duration = (len(content) - 44) / 32000
        cues = [{"start": 0.1, "end": 0.9, "lines": ["AB C"]}, {"start": 1.2, "end": 2.4, "lines": ["BA", "CAB"]}]
        answer = {"status": "OK", "transcription": [best]}
        if options.get("words") == "true":
            answer |= {"duration": duration, "words": WORDS, "cues": cues}
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
                times = {"start": told, "end": told + 1}
                cue = {**times, "lines": [f"SECOND {told}"]}
                await socket.send_json({"final": f"SECOND {told}", **times, "words": second(told), "cues": [cue]})
                told += 1
            elif heard >= told + 0.5:
                await socket.send_json({"partial": f"HALF {told}"})
        if message["type"] == "websocket.receive":
            assert json.loads(message["text"]) == {"eof": 1}
            await socket.send_json({"final": "", "start": heard, "end": heard, "words": [], "cues": []})
            await socket.close()


def post(address: str, path: Path, **fields: str) -> bytes:
    """What a form with a recording is answered without a browser."""
    parts = [f'--+\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields.items()]
    head = f'--+\r\nContent-Disposition: form-data; name="file"; filename="{path.name}"\r\n\r\n'
    body = ("".join(parts) + head).encode() + path.read_bytes() + b"\r\n--+--\r\n"
    request = urllib.request.Request(address, body, {"Content-Type": "multipart/form-data; boundary=+"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read()


def ask(url: str, path: Path, **fields: str) -> dict:
    return json.loads(post(f"{url}/transcribe", path, **fields))


def second(start: int) -> list[dict]:
    times = [(start + 0.1, start + 0.5), (start + 0.5, start + 0.9)]
    words = ("SECOND", str(start))
    return [{"word": w, "start": s, "end": e, "confidence": 0.9} for w, (s, e) in zip(words, times, strict=True)]


@pytest.fixture(scope="module")
def server():
    with closing(Server()) as running:
        yield running


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
# What is heard, and the words marked as it is: who looks now and then may miss half a second of it.
KEEP_HEARD = """
window.heard = [];
new MutationObserver((changes) => {
    for (const { target } of changes) {
        if (target.id === "listen" && target.dataset.playing) window.heard.push(target.dataset.playing);
        if (target.matches("#words > span.playing")) window.heard.push(target.textContent);
    }
}).observe(document, { subtree: true, attributeFilter: ["data-playing", "class"] });
"""
READ_FORM = """
async () => Promise.all([...window.forms.at(-1)].map(async ([name, value]) => [name, typeof value === "string" ? value :
    [value.name, btoa(Array.from(new Uint8Array(await value.arrayBuffer()), (byte) => String.fromCharCode(byte)).join(""))]]))
"""

DROP = """
([contents, types]) => {
    const transfer = new DataTransfer();
    for (const [i, content] of contents.entries())
        transfer.items.add(new File([Uint8Array.from(atob(content), (c) => c.charCodeAt(0))], `dropped${i}.wav`));
    if (!contents.length) transfer.setData("text/plain", "only text");
    const drop = document.getElementById("drop");
    let over = false;
    for (const type of types) {
        drop.dispatchEvent(new DragEvent(type, { dataTransfer: transfer, bubbles: true, cancelable: true }));
        over ||= drop.classList.contains("over");
    }
    return over;
}
"""


class Visit:
    """A page opened in a window of its own, and all it complained of and asked for."""

    def __init__(self, browser, server, script: str = "", **settings):
        self.context = browser.new_context(**{"locale": "en-GB", "viewport": {"width": 1280, "height": 900}} | settings)
        self.context.add_init_script(KEEP_FORMS + KEEP_HEARD + script)
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
        self.page.wait_for_selector("#model:not(:empty), #options[open]")  # /info has come

    def choose(self, *names: str, name: str = "", content: bytes = b"") -> None:
        files = {"name": name, "mimeType": "audio/wav", "buffer": content} if name else list(names)
        self.page.set_input_files("#file", files)

    def sent(self) -> dict:
        """The form last sent: its texts, and its file as (name, bytes)."""
        fields = dict(self.page.evaluate(READ_FORM))
        return fields | {"file": (fields["file"][0], base64.b64decode(fields["file"][1]))}

    def hears(self, part: str) -> None:
        """Wait until a part of the recording, by its seconds, or a word that is marked, has begun to be heard."""
        self.page.wait_for_function("(part) => window.heard.includes(part)", arg=part)

    def transcribed(self) -> None:
        self.page.wait_for_selector("#status >> text=/Transcript ready|文字起こしができました/")

    def answer(self, texts: list[str], words: list[dict]) -> None:
        """What is transcribed from now on."""
        answer = {"status": "OK", "transcription": [texts], "words": words, "cues": []}
        self.page.route("**/transcribe", lambda route: route.fulfill(json=answer))

    def drop(self, *contents: bytes, types: str = "dragover drop") -> bool:
        """Drags files, or without any a text, over the page; returns whether it shows that they may be dropped."""
        return self.page.evaluate(DROP, [[base64.b64encode(content).decode() for content in contents], types.split()])

    def focus(self) -> str:
        return self.page.evaluate("document.activeElement.id || document.activeElement.textContent")

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
    window.transcribed()
    assert window.texts("#words > span") == [word["word"] for word in answer["words"]]
    labels = [button.get_attribute("aria-label") for button in window.page.locator("#words > span").all()]
    assert labels == [f"{word['word']}, {round(100 * word['confidence'])} %" for word in answer["words"]]
    lines = window.page.evaluate("[...document.querySelectorAll('#words > span')].map(b => getComputedStyle(b).textDecoration)")
    kinds = ["wavy" if "wavy" in line else "dotted" if "dotted" in line else "" for line in lines]
    levels = [word["confidence"] for word in answer["words"]]
    assert kinds == ["wavy" if level < 0.5 else "dotted" if level < 0.85 else "" for level in levels]
    assert window.texts("#status") == [f"Transcript ready: {len(answer['words'])} words"]
    assert window.focus() == "result-heading"
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
    assert [window.page.input_value(field) for field in ("#beam-width", "#top-paths")] == ["24", "2"], "as the server does it"
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
    window.page.locator("#words > span").nth(3).click()
    window.hears("1.85-2.4")
    assert window.texts("#detail") == ["CAB · 99 % · 1.85 to 2.40 s"]
    window.hears("CAB")
    window.page.wait_for_selector("#listen:not([data-playing])")
    assert float(window.page.input_value("#seek")) == pytest.approx(2.4)
    window.page.keyboard.press("ArrowLeft")
    assert window.focus() == "BA"
    window.page.keyboard.press("Enter")
    window.hears("1.2-1.55")
    window.page.keyboard.press("Home")
    assert window.focus() == "AB"
    assert window.page.locator("#words [tabindex='0']").count() == 1, "all words are one tab stop"


def test_the_whole_plays_from_where_one_clicks(visit, spoken):
    window = visit()
    window.choose(spoken)
    timeline = window.page.locator(".timeline-content")
    timeline.wait_for()
    box = timeline.bounding_box()
    window.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 40)
    duration = soundfile.info(spoken).duration
    assert float(window.page.input_value("#seek")) == pytest.approx(duration / 2, abs=0.06), "in steps of 0.1 s"
    window.page.click("#play")
    window.page.wait_for_function("() => document.getElementById('seek').value > 1.6")
    assert window.texts("#play") == ["Stop"]
    window.page.click("#play")
    assert 1.6 < float(window.page.input_value("#seek")) < duration
    window.page.evaluate("window.heard = []")
    window.page.locator(".timeline-word >> text=CAB").click()
    window.hears("1.85-2.4")


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
    window.choose(name="long.wav", content=noise(30))
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
    window.transcribed()
    with window.page.expect_download() as text:
        window.page.click("#save-text")
    assert (text.value.suggested_filename, text.value.path().read_text()) == ("beeps.txt", f"{SAID}\n")
    with window.page.expect_download() as srt:
        window.page.click("#save-srt")
    assert srt.value.suggested_filename == "beeps.srt"
    assert srt.value.path().read_text() == (
        "1\n00:00:00,100 --> 00:00:00,900\nAB C\n\n2\n00:00:01,200 --> 00:00:02,400\nBA\nCAB\n"
    )
    window.page.click("#copy")
    window.page.wait_for_selector("#copy >> text=Copied")
    assert window.page.evaluate("navigator.clipboard.readText()") == SAID


def test_what_is_no_recording_is_refused_in_one_line(visit, server):
    window = visit()
    window.choose(name="notes.wav", content=b"no sound at all")
    window.page.wait_for_selector("#error:not(:empty)")
    assert window.texts("#error") == ["notes.wav: not audio that can be read; expected WAV"]
    assert window.page.locator("#error").get_attribute("role") == "alert"
    assert window.texts("#status") == [""], "nothing is under way"
    assert not window.page.locator("#work").is_visible()
    assert window.complaints == ["Failed to load resource: the server responded with a status of 415 (Unsupported Media Type)"]
    window.complaints.clear()
    window.choose(name="huge.wav", content=bytes(2**20 + 1))
    assert window.texts("#error") == ["huge.wav has 1.0 MB; the server takes up to 1 MB."]
    assert len(window.page.evaluate("window.forms")) == 1, "it was not sent"


def test_a_key_is_asked_for_sent_and_forgotten(visit, spoken):
    with closing(Server(key="open sesame!")) as locked:
        locked.key = "sesame!"
        window = visit(locked)
        assert window.texts("#error") == [""]
        window.choose(spoken)
        window.page.wait_for_selector("#error >> text=The server wants an API key: enter it under Options.")
        for typed, told in (("合言葉", "only the letters, digits and signs of ASCII"), ("sesam", "does not take this API key")):
            window.page.fill("#key", typed)
            window.page.locator("#key").blur()
            window.page.wait_for_selector(f"#error >> text={told}")
        assert window.page.evaluate("window.forms") == [], "nothing is sent in vain"
        window.choose(spoken)
        window.page.wait_for_selector("#error >> text=does not take this API key")
        assert window.complaints == ["Failed to load resource: the server responded with a status of 401 (Unauthorized)"]
        window.complaints.clear()
        window.page.fill("#key", " sesame! ")
        window.page.locator("#key").blur()
        window.page.wait_for_selector("#model:not(:empty)")
        window.page.select_option("#decoder", "beam")
        with window.page.expect_response("**/info"):
            window.page.fill("#key", "sesame!")
            window.page.locator("#key").blur()
        window.choose(spoken)
        window.page.wait_for_selector("#words > span >> text=CAB")
        assert window.texts("#error") == [""]
        assert window.sent()["decoder"] == "beam", "a key changes nothing that was chosen"
        kept = window.page.evaluate("[Object.values(sessionStorage), Object.values(localStorage), document.cookie]")
        assert kept == [["sesame!"], [], ""]


NO_STORAGE = """
for (const area of ["sessionStorage", "localStorage"])
    Object.defineProperty(window, area, { get() { throw new DOMException("denied", "SecurityError"); } });
"""


def test_it_works_where_nothing_can_be_stored(visit, spoken):
    window = visit(script=NO_STORAGE)
    window.page.select_option("#language", "ja")
    window.page.click("summary")
    window.page.fill("#key", "sesame")
    window.choose(spoken)
    window.transcribed()
    assert window.page.evaluate("document.documentElement.lang") == "ja"


def test_again_sends_what_is_shown(visit, spoken, tmp_path):
    """Not what was sent in between and failed, nor what has become of the file."""
    recording = tmp_path / "mine.wav"
    recording.write_bytes(spoken.read_bytes())
    window = visit()
    window.choose(recording)
    window.transcribed()
    recording.write_bytes(b"changed")
    window.choose(name="notes.wav", content=b"no sound at all")
    window.page.wait_for_selector("#error:not(:empty)")
    window.complaints.clear()
    window.page.focus("#again")
    window.page.keyboard.press("Enter")
    window.page.wait_for_selector("#status >> text=Transcript ready")
    assert window.sent()["file"] == ("mine.wav", spoken.read_bytes())
    assert window.texts("#error") == [""]


def test_a_file_that_is_gone_when_it_is_dropped_is_told(visit, tmp_path):
    recording = tmp_path / "mine.wav"
    recording.write_bytes(b"RIFF")
    window = visit()
    window.page.evaluate("""() => {
        const other = document.createElement("input");
        [other.type, other.id] = ["file", "other"];
        document.body.append(other);
    }""")
    window.page.set_input_files("#other", recording)
    recording.unlink()
    window.page.evaluate("""() => {
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(document.getElementById("other").files[0]);
        document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
    }""")
    window.page.wait_for_selector("#error:not(:empty)")
    assert window.texts("#error") == ["mine.wav cannot be read: was it changed, moved or deleted? Choose it again."]


@pytest.mark.parametrize("body", ['{"status": "OK"}', '{"transcription": [[null]]}', "null", "<h1>It works!</h1>", "[", "7"])
def test_an_answer_that_is_none_is_told(visit, spoken, body):
    window = visit()
    window.page.route("**/transcribe", lambda route: route.fulfill(body=body))
    window.choose(spoken)
    window.page.wait_for_selector("#error:not(:empty)")
    assert window.texts("#error") == ["The server's answer could not be read."]
    assert window.page.locator("#choose").get_attribute("aria-disabled") == "false"


def test_an_upload_shows_how_far_it_is_and_can_be_cancelled(visit, spoken):
    """Meanwhile nothing else begins."""
    window = visit()
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 100_000}
    window.context.new_cdp_session(window.page).send("Network.emulateNetworkConditions", slow)
    window.choose(name="slow.wav", content=b"RIFF" + bytes(900_000))
    window.page.wait_for_function("() => document.getElementById('progress').value > 5")
    assert window.texts("#work-text") == ["Uploading slow.wav …"]
    assert not window.drop(spoken.read_bytes()), "nothing invites to drop a file"
    assert window.texts("#error") == ["One recording at a time, please: drop it again when this one is done."]
    window.page.locator("#record").dispatch_event("click")
    window.choose(spoken)
    assert window.texts("#work-text") == ["Uploading slow.wav …"]
    window.page.focus("#cancel")
    window.page.keyboard.press("Enter")
    window.page.wait_for_selector("#status >> text=Cancelled.")
    assert not window.page.locator("#work").is_visible()
    assert window.focus() == "choose", "where the focus was is gone"
    assert len(window.page.evaluate("window.forms")) == 1


def test_a_dropped_file_is_transcribed(visit, spoken):
    window = visit()
    assert not window.drop(types="dragover"), "text is no recording"
    assert window.drop(spoken.read_bytes(), spoken.read_bytes())
    assert window.texts("#error") == ["One recording at a time, please: these were 2 files."]
    assert window.drop(spoken.read_bytes())
    window.transcribed()
    assert window.sent()["file"] == ("dropped0.wav", spoken.read_bytes())
    assert window.texts("#error") == [""]


def noise(seconds: float) -> bytes:
    wave = io.BytesIO()
    samples = np.random.default_rng(1).normal(0, 0.1, round(16000 * seconds))
    soundfile.write(wave, samples, 16000, format="WAV", subtype="PCM_16")
    return wave.getvalue()


def test_a_long_transcript_leaves_the_player_in_sight(visit):
    texts = ["WORDS", "言葉"] * 290
    words = [{"word": word, "start": i / 21, "end": i / 21 + 0.04, "confidence": 0.9} for i, word in enumerate(texts)]
    words[-1]["end"] = 29
    window = visit()
    window.answer([" ".join(texts)], words)
    window.choose(name="long.wav", content=noise(29))
    window.transcribed()
    box = window.page.locator("#words").bounding_box()
    assert box["height"] <= 0.4 * 900
    window.page.keyboard.press("Tab")
    window.page.focus("#words > span")
    window.page.keyboard.press("End")
    window.page.evaluate("document.getElementById('words').scrollTop = 0")
    scrolled = window.page.evaluate("scrollY")
    window.page.keyboard.press("Enter")
    window.hears(words[-1]["word"])
    last, box = (window.page.locator(part).bounding_box() for part in ("#words > span:last-of-type", "#words"))
    assert box["y"] <= last["y"] <= box["y"] + box["height"] - last["height"], "the word that is heard can be seen"
    assert window.page.evaluate("scrollY") == scrolled, "and the page stays where it was"
    window.page.click("#zoom-all")
    assert window.page.evaluate("""() => {
        const timeline = document.getElementById("timeline");
        return [timeline.scrollWidth === timeline.clientWidth, timeline.tabIndex];
    }""") == [True, -1], "the whole recording is in view, so that there is nothing to scroll"  # fmt: skip
    names = window.page.evaluate("""() => [...document.querySelectorAll(".timeline-word:not([hidden])")].map((name) => {
        const { left, right, top } = name.getBoundingClientRect();
        return [left, right, top];
    })""")
    assert 20 < len(names) < len(words), "only those that have room"
    for row in {top for _, _, top in names}:
        sides = sorted((left, right) for left, right, top in names if top == row)
        assert all(right <= left for (_, right), (left, _) in pairwise(sides)), "none lies over another"


def test_the_transcript_can_be_selected(visit, spoken):
    window = visit()
    window.choose(spoken)
    window.transcribed()
    first, _, third, last = (word.bounding_box() for word in window.page.locator("#words > span").all())
    for begin, end, selected in ((last, last, "CAB"), (first, third, "AB C BA")):
        window.page.mouse.move(begin["x"] + 1, begin["y"] + begin["height"] / 2)
        window.page.mouse.down()
        window.page.mouse.move(end["x"] + end["width"] - 1, end["y"] + end["height"] / 2, steps=5)
        window.page.mouse.up()
        assert window.page.evaluate("getSelection().toString()") == selected
        assert window.texts("#play") == ["Play"], "to select is not to play"
    window.page.locator("#words > span").nth(2).click()
    window.hears("1.2-1.55")


def test_what_cannot_be_copied_is_selected(visit, spoken):
    window = visit(script='Object.defineProperty(navigator, "clipboard", { value: undefined });')  # as without https
    window.choose(spoken)
    window.page.click("#copy")
    window.page.wait_for_selector("#error >> text=The text is selected")
    assert window.page.evaluate("getSelection().toString()").strip() == SAID


def test_what_the_browser_cannot_play_does_not_look_playable(visit):
    window = visit()
    window.choose(name="strange.sph", content=b"RIFF" + bytes(1000))
    window.transcribed()
    assert window.page.locator("#unheard").is_visible()
    assert not window.page.locator("#listen").is_visible()
    assert window.texts("#words-hint") == [""]
    word = window.page.locator("#words > span").first
    assert word.get_attribute("aria-disabled") == "true"
    assert word.evaluate("(word) => getComputedStyle(word).cursor") == "text"
    word.click(force=True)
    assert window.texts("#detail") == ["AB · 97 % · 0.10 to 0.45 s"], "its confidence is still told"


def test_arrow_keys_follow_the_script(visit, spoken):
    """From right to left, the left arrow leads to the next word."""
    window = visit()
    window.answer(["שלום עולם"], [{"word": w, "start": i, "end": i + 1} for i, w in enumerate(("שלום", "עולם"))])
    window.choose(spoken)
    window.transcribed()
    window.page.focus("#words > span")
    window.page.keyboard.press("ArrowLeft")
    assert window.focus() == "עולם"
    window.page.keyboard.press("ArrowRight")
    assert window.focus() == "שלום"


def test_the_position_is_told_and_set_by_keys(visit, spoken):
    window = visit()
    window.choose(spoken)
    window.transcribed()
    seek = window.page.locator("#seek")
    duration = round(soundfile.info(spoken).duration)
    for key, seconds in (("ArrowRight", "0.1"), ("ArrowRight", "0.2"), ("ArrowLeft", "0.1")):
        seek.press(key)
        assert seek.get_attribute("aria-valuetext") == f"{seconds} of {duration} s"
    window.choose(name="long.wav", content=b"RIFF" + bytes(10))
    window.page.wait_for_selector("#unheard:not([hidden])")
    window.choose(name="long.wav", content=slow_wav(seconds=90))
    window.page.wait_for_selector("#listen:not([hidden])")
    seek.press("ArrowRight")
    assert seek.get_attribute("aria-valuetext") == "1.0 of 90 s"


def slow_wav(seconds: int) -> bytes:
    wave = io.BytesIO()
    soundfile.write(wave, np.zeros(4000 * seconds), 4000, format="WAV", subtype="PCM_16")
    return wave.getvalue()


def test_channels_are_mixed(visit):
    """The picture shows what the model hears."""
    wave = io.BytesIO()
    soundfile.write(wave, np.tile([0.5, -0.25], (16000, 1)), 16000, format="WAV", subtype="PCM_16")
    mixed = visit().page.evaluate("""async (content) => {
        const { decode } = await import("/page/player.js");
        const buffer = await decode(Uint8Array.from(atob(content), (c) => c.charCodeAt(0)).buffer, 16000);
        return [buffer.numberOfChannels, buffer.length, buffer.getChannelData(0)[8000]];
    }""", base64.b64encode(wave.getvalue()).decode())  # fmt: skip
    assert mixed == [1, 16000, pytest.approx(0.125, abs=1e-4)]


def test_japanese_and_english(visit, spoken):
    window = visit(locale="ja-JP")
    language = "[document.documentElement.lang, document.title, document.getElementById('choose').innerText]"
    assert window.page.evaluate(language) == ["ja", "文字起こし", "ファイルを選ぶ"]
    window.choose(spoken)
    window.transcribed()
    assert window.page.locator("#words > span").first.get_attribute("aria-label") == "AB、97 %"
    assert window.page.locator("#words").get_attribute("lang") == "", "what was said need not be Japanese"
    window.page.locator("#words > span").first.hover()
    window.choose(name="huge.wav", content=bytes(2**20 + 1))
    assert window.texts("#error") == ["huge.wav は 1.0 MB です。サーバーの上限は 1 MB です。"]
    window.page.select_option("#language", "en")
    assert window.page.evaluate(language) == ["en", "Transcribe", "Choose a file"]
    assert window.page.locator("#words > span").first.get_attribute("aria-label") == "AB, 97 %"
    assert window.texts("#detail") == ["AB · 97 % · 0.10 to 0.45 s"]
    assert window.texts("#error") == ["huge.wav has 1.0 MB; the server takes up to 1 MB."]
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
    boxes = [window.page.locator(name).bounding_box() for name in ("#play", ".seek", "#clock", "#zoom-out", "#zoom-all")]
    middles = [round(box["y"] + box["height"] / 2) for box in boxes]
    assert len(set(middles)) == (1 if width == 1280 else 2), middles


def test_high_contrast_hides_nothing(visit, spoken):
    """Where the system chooses the colours, backgrounds that mean something must still differ from what is around."""
    window = visit(forced_colors="active", color_scheme="dark")
    window.choose(spoken)
    window.transcribed()
    colour = "(element) => getComputedStyle(element).backgroundColor"
    around = window.page.locator("#result").evaluate(colour)
    live = window.page.locator("#live")
    off = live.evaluate(colour)
    live.check()
    for what in ("#live", ".dot", "#level", ".timeline-span", ".cursor"):
        assert window.page.locator(what).first.evaluate(colour) not in (around, "rgba(0, 0, 0, 0)"), what
    assert live.evaluate(colour) != off


def found_by_axe(page) -> list[tuple[str, list]]:
    found = axe.Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]})
    return [(trouble["id"], [node["html"] for node in trouble["nodes"]]) for trouble in found.response["violations"]]


def test_everything_can_be_reached_by_tab_and_shows_it(visit, spoken):
    window = visit()
    window.choose(spoken)
    window.transcribed()
    window.page.click("#zoom-in")
    window.page.focus("#language")
    reached = ["language"]
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
    wanted = "language choose record live copy save-text save-srt again AB play seek zoom-out zoom-in zoom-all timeline".split()
    assert [name for name in reached if name in wanted] == wanted
