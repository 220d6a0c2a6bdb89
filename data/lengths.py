"""How many frames there are of so many samples, for whoever has no need of torch."""

from config import AudioConfig


def frame_count(samples: int, config: AudioConfig) -> int:
    """T, the frames of a spectrogram of so many samples: lengths stay integers from the file to the loss.

    One frame is centred on every hop's first sample, the wave's end included; a window of odd length needs one more.
    """
    return 1 + (samples - config.window_samples % 2) // config.hop_samples
