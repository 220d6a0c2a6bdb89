"""The page's microphone in a real browser, which hears a recording instead (test_page.py says what it talks to)."""

import io
import json
import struct
from contextlib import closing

import numpy as np
import soundfile
from test_page import Server, browser, pytestmark, server, spoken, visit  # noqa: F401

# ruff: noqa: F811

ASK_LATER = """
const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
window.tracks = [];
navigator.mediaDevices.getUserMedia = async (wanted) => {
    await new Promise((resolve) => window.allow = resolve);
    const stream = await ask(wanted);
    window.tracks.push(...stream.getTracks());
    return stream;
};
"""


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
    assert window.page.locator("#choose").get_attribute("aria-disabled") == "true"
    assert window.texts("#status") == ["Recording"]
    window.page.click("#record")
    window.transcribed()
    name, content = window.sent()["file"]
    recorded, rate = soundfile.read(io.BytesIO(content))
    assert (name, rate, recorded.ndim) == ("recording.wav", 16000, 1)
    assert soundfile.info(io.BytesIO(content)).subtype == "PCM_16"
    assert struct.unpack("<I", content[4:8])[0] == len(content) - 8
    assert 2 < len(recorded) / rate < 4
    played, _ = soundfile.read(spoken)
    assert likeness(recorded[8000:24000], played) > 0.95
    assert window.page.locator("#record").inner_text() == "Record"


def test_space_starts_and_stops_a_recording(visit):
    window = visit()
    window.page.focus("#record")
    window.page.keyboard.press("Space")
    window.page.wait_for_selector("#timer >> text=0:01")
    assert window.focus() == "record"
    window.page.keyboard.press("Space")
    window.transcribed()
    assert window.focus() == "result-heading"
    assert window.page.evaluate("window.forms.length") == 1


def test_nothing_else_begins_while_the_browser_asks_for_the_microphone(visit, spoken):
    window = visit(script=ASK_LATER)
    window.page.click("#record")
    window.page.wait_for_selector("#work-text >> text=Asking for the microphone")
    window.choose(spoken)
    window.drop(spoken.read_bytes())
    window.page.click("#cancel")
    assert not window.page.locator("#work").is_visible()
    assert window.focus() == "choose"
    window.page.evaluate("window.allow()")
    window.page.wait_for_function("() => window.tracks.length && window.tracks.every((track) => track.readyState === 'ended')")
    assert not window.page.locator("#recording").is_visible(), "allowed too late, the microphone is closed again"
    window.page.click("#record")
    window.page.evaluate("window.allow()")
    window.page.wait_for_selector("#timer >> text=0:01")
    window.page.click("#record")
    window.transcribed()
    assert window.page.evaluate("window.forms.length") == 1


def test_a_recording_that_is_stopped_says_why(visit):
    with closing(Server(max_audio_seconds=2.5)) as short:
        window = visit(short)
        window.page.click("#record")
        window.page.wait_for_selector("#source >> text=stopped there, as the server takes no longer ones")
        assert 1.5 < len(window.sent()["file"][1]) / 32000 < 2.5


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
    window.page.click("summary")
    assert window.page.locator("#decoder").is_disabled(), "Live has no choice"
    assert window.texts("#decoding-hint") == ["Live uses the server's own settings."]
    window.page.evaluate("""() => {
        window.partials = [];
        const partial = document.getElementById("partial");
        new MutationObserver(() => window.partials.push(partial.textContent)).observe(partial, { childList: true });
    }""")
    window.page.click("#record")
    window.page.wait_for_selector("#listening:visible")
    window.page.wait_for_selector("#finals >> text=SECOND 1")
    assert window.page.evaluate("[...new Set(window.partials)].filter((text) => text)")[:2] == ["HALF 0", "HALF 1"]
    assert window.texts("#finals p")[:2] == ["SECOND 0", "SECOND 1"], "what is final stays"
    window.page.click("#record")
    window.transcribed()
    assert window.texts("#words > span")[:4] == ["SECOND", "0", "SECOND", "1"]
    first, *sound, last = window.frames
    assert (json.loads(first), json.loads(last)) == ({"rate": 16000}, {"eof": 1})
    samples = np.frombuffer(b"".join(sound), "<i2") / 32768
    played, _ = soundfile.read(spoken)
    assert likeness(samples[8000:24000], played) > 0.95
    with window.page.expect_download() as srt:
        window.page.click("#save-srt")
    assert srt.value.path().read_text().startswith("1\n00:00:00,000 --> 00:00:01,000\nSECOND 0\n\n2\n")
    assert window.texts("#error") == [""]


def test_a_live_connection_that_is_refused_leaves_no_empty_result(visit, spoken):
    with closing(Server()) as changed:
        window = visit(changed)
        window.choose(spoken)
        window.transcribed()
        changed.key = "sesame"
        window.page.check("#live")
        window.page.click("#record")
        window.page.wait_for_selector("#error >> text=the key is missing or wrong")
        assert not window.page.locator("#live-result").is_visible()
        assert window.texts("#source")[0].startswith("beeps.wav"), "what was there before is there again"
        window.page.click("summary")
        window.page.fill("#key", "sesame")
        window.page.click("#record")
        window.page.wait_for_selector("#partial:not(:empty)")
        texts = [json.loads(frame) for frame in window.frames if isinstance(frame, str)]
        assert texts[-1] == {"rate": 16000, "key": "sesame"}
        window.page.click("#record")
        window.page.wait_for_selector("#result:visible")


def test_a_server_that_is_gone_is_told(visit, browser, spoken):
    gone = Server()
    window = visit(gone)
    window.page.check("#live")
    window.page.click("#record")
    window.page.wait_for_selector("#finals >> text=SECOND 0")
    gone.close()
    window.page.wait_for_selector("#error >> text=closed before its end")
    assert window.texts("#words > span")[:2] == ["SECOND", "0"], "what was said is kept"
    window.choose(spoken)
    window.page.wait_for_selector("#error >> text=The server cannot be reached. Is it running?")
    assert all("ERR_CONNECTION" in complaint for complaint in window.complaints), window.complaints
    window.complaints.clear()
