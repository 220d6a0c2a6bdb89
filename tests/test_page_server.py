"""The page and the server themselves: a real browser on `python server.py` with a network that reads beeps."""

import time
import urllib.request
from contextlib import closing
from pathlib import Path

from beep_network import save_beep_network
from beeps import start
from test_page import ask, browser, post, pytestmark, server, spoken, visit  # noqa: F401

# ruff: noqa: F811


class RealServer:
    def __init__(self, folder: Path, *options: object, **network: bool):
        model = save_beep_network(folder / "beeps.pth", **network)
        flags = ["--model-path", model, "--host", "127.0.0.1", "--port", 0, "--max-upload-mb", 1, *options]
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


def test_the_server_itself_transcribes_a_recording_and_the_microphone(visit, spoken, tmp_path):
    with closing(RealServer(tmp_path)) as real:
        answer = ask(real.url, spoken, words="true", decoder="beam", top_paths="3")
        window = visit(real)
        window.page.click("summary")
        window.page.select_option("#decoder", "beam")
        window.page.fill("#top-paths", "3")
        window.choose(spoken)
        window.page.wait_for_selector("#best li")
        assert window.texts("#words > span") == [word["word"] for word in answer["words"]] != []
        assert window.texts("#best li") == answer["transcription"][0]
        with window.page.expect_download() as srt:
            window.page.click("#save-srt")
        fields = {"model": "any", "response_format": "srt"}
        assert srt.value.path().read_bytes() == post(f"{real.url}/v1/audio/transcriptions", spoken, **fields)
        window.page.locator("#words > span").first.click()
        window.hears(answer["words"][0]["word"])
        window.page.click("#record")
        window.page.wait_for_selector("#timer >> text=0:02")
        window.page.click("#record")
        window.page.wait_for_selector("#source >> text=recording.wav")
        assert set("".join(window.texts("#words > span"))) == set("ABC")
        window.page.check("#live")
        assert window.texts("#live-hint") == ["The text appears whenever you pause."]
        window.page.click("#record")
        window.page.wait_for_selector("#timer >> text=0:02")
        window.page.click("#record")
        window.page.wait_for_selector("#live-result", state="hidden")
        assert set("".join(window.texts("#words > span"))) == set("ABC")
        window.choose(name="notes.wav", content=b"no sound at all")
        window.page.wait_for_selector("#error >> text=notes.wav: not audio that can be read")
        assert [complaint for complaint in window.complaints if "415" not in complaint] == []
        window.complaints.clear()


def test_the_server_itself_hears_live(visit, tmp_path):
    """With a model that follows streams, and a key."""
    (tmp_path / "keys").write_text("sesame\n")
    with closing(RealServer(tmp_path, "--api-key-file", "keys", bidirectional=False, streaming_norm=True)) as real:
        window = visit(real)
        window.page.fill("#key", "wrong")
        window.page.locator("#key").blur()
        window.page.wait_for_selector("#error >> text=does not take this API key")
        window.page.fill("#key", "sesame")
        window.page.check("#live")
        window.page.wait_for_selector("#model:not(:empty)")
        assert window.texts("#live-hint") == ["The text appears while you speak."]
        window.page.click("#record")
        window.page.wait_for_selector("#partial:not(:empty)")
        window.page.click("#record")
        window.transcribed()
        words = window.texts("#words > span")
        assert set("".join(words)) <= set("ABC")
        assert window.texts("#error") == [""]
        with window.page.expect_download() as srt:
            window.page.click("#save-srt")
        assert srt.value.path().read_text().startswith("1\n00:00:")
        assert srt.value.path().read_text().count(words[0]) >= 1
