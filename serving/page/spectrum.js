// Magnitudes of short pieces of sound, in decibels: what a column of the spectrogram shows.

const WINDOW_SECONDS = 0.025;

export class Spectrum {
  constructor(rate) {
    this.length = Math.round(rate * WINDOW_SECONDS);
    this.size = 2 ** Math.ceil(Math.log2(this.length));
    this.window = Float32Array.from({ length: this.length }, (_none, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / this.length));
    this.cos = Float32Array.from({ length: this.size / 2 }, (_none, i) => Math.cos((2 * Math.PI * i) / this.size));
    this.sin = Float32Array.from({ length: this.size / 2 }, (_none, i) => -Math.sin((2 * Math.PI * i) / this.size));
    this.real = new Float32Array(this.size);
    this.imag = new Float32Array(this.size);
    this.decibels = new Float32Array(this.size / 2 + 1);
  }

  // Around sample `center`; the result is valid until the next call. 0 dB is a sine of full scale.
  at(samples, center) {
    const { real, imag, window } = this;
    real.fill(0);
    imag.fill(0);
    const start = center - (this.length >> 1);
    for (let i = Math.max(0, -start); i < this.length && start + i < samples.length; i++) real[i] = samples[start + i] * window[i];
    this.transform();
    const full = (this.length / 4) ** 2; // a windowed sine's peak, squared
    for (let bin = 0; bin < this.decibels.length; bin++) {
      this.decibels[bin] = 10 * Math.log10((real[bin] ** 2 + imag[bin] ** 2) / full + 1e-12);
    }
    return this.decibels;
  }

  // Radix-2 FFT in place (Cooley and Tukey).
  transform() {
    const { real, imag, cos, sin, size } = this;
    for (let i = 1, j = 0; i < size; i++) {
      let bit = size >> 1;
      for (; j & bit; bit >>= 1) j ^= bit;
      j ^= bit;
      if (i < j) {
        [real[i], real[j]] = [real[j], real[i]];
        [imag[i], imag[j]] = [imag[j], imag[i]];
      }
    }
    for (let half = 1; half < size; half *= 2) {
      const stride = size / (2 * half);
      for (let block = 0; block < size; block += 2 * half) {
        for (let k = 0; k < half; k++) {
          const a = block + k;
          const b = a + half;
          const re = real[b] * cos[k * stride] - imag[b] * sin[k * stride];
          const im = real[b] * sin[k * stride] + imag[b] * cos[k * stride];
          real[b] = real[a] - re;
          imag[b] = imag[a] - im;
          real[a] += re;
          imag[a] += im;
        }
      }
    }
  }
}
