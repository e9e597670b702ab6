/* The arithmetic of the page on rotary embeddings. It repeats pythia_core/kernels/rotary.py; the tests
   run it in node and compare. */
"use strict";

const rotary = (() => {
  const BASE = 10000, FRACTION = 0.25, CONTEXT = 2048, REACH = 128, STRETCH = 32;
  const MODELS = {
    32: "14M, 31M", 64: "70M, 160M, 410M", 80: "2.8B", 128: "1.4B, 6.9B, 12B", 256: "1B",
  };
  // significant bits, exponent of the smallest normal number
  const TYPES = { bf16: [8, -126], fp16: [11, -14], fp32: [24, -126] };
  const WAYS = {
    "bf16": "bf16 throughout", "fp16": "fp16 throughout",
    "fp32, bf16": "angle in fp32, then bf16", "fp32, fp16": "angle in fp32, then fp16",
  };

  function rotaryDims(headDim) {
    return Math.floor(FRACTION * headDim);
  }

  /** Radians per position of every pair. */
  function inverseFrequencies(headDim) {
    const dims = rotaryDims(headDim);
    return Array.from({ length: dims / 2 }, (_, i) => BASE ** (-2 * i / dims));
  }

  /** Turn the first dims of a head's vector; dim i is paired with dim i + rotaryDims / 2. */
  function rotate(vector, position) {
    const turned = vector.slice(), frequencies = inverseFrequencies(vector.length);
    const half = frequencies.length;
    frequencies.forEach((frequency, i) => {
      const cos = Math.cos(position * frequency), sin = Math.sin(position * frequency);
      turned[i] = vector[i] * cos - vector[i + half] * sin;
      turned[i + half] = vector[i + half] * cos + vector[i] * sin;
    });
    return turned;
  }

  /** A pair's share of the score at a distance; `learned` is [degrees of phi, percent of |q| |k|]. */
  function share(distance, frequency, [degrees, percent]) {
    return percent / 100 * Math.cos(degrees * Math.PI / 180 + distance * frequency);
  }

  const SAME = [0, 100]; // query and key are one hand of length 1
  /** The score at a distance: the mean over the pairs, so at most 1. */
  function score(distance, headDim, learned = {}) {
    const frequencies = inverseFrequencies(headDim);
    const sum = frequencies.reduce((s, f, i) => s + share(distance, f, learned[i] || SAME), 0);
    return sum / frequencies.length;
  }

  /** The nearest number of a floating-point type, ties to even. */
  function round(x, type) {
    if (x === 0) return 0;
    const [bits, lowest] = TYPES[type];
    const step = 2 ** (Math.max(Math.floor(Math.log2(Math.abs(x))), lowest) - bits + 1);
    const nearest = Math.round(x / step);
    return step * (Math.abs((x / step) % 1) === 0.5 && nearest % 2 ? nearest - 1 : nearest);
  }

  /** The angle of a position with everything in one type. */
  function angle(position, frequency, type) {
    return round(round(position, type) * round(frequency, type), type);
  }

  /** The larger error of cos and sin; `way` is a key of WAYS. */
  function tableError(position, frequency, way) {
    const [first, last] = [way.split(", ")[0], way.split(", ").pop()];
    const got = angle(position, frequency, first), exact = position * frequency;
    return Math.max(
      Math.abs(round(Math.cos(got), last) - Math.cos(exact)),
      Math.abs(round(Math.sin(got), last) - Math.sin(exact)));
  }

  /** The largest error of any pair in each stretch of positions. */
  function errorCurve(headDim, way) {
    const tops = new Array(CONTEXT / STRETCH).fill(0), frequencies = inverseFrequencies(headDim);
    for (let position = 0; position < CONTEXT; position++) {
      const k = Math.floor(position / STRETCH);
      for (const frequency of frequencies) {
        tops[k] = Math.max(tops[k], tableError(position, frequency, way));
      }
    }
    return tops;
  }

  return {
    REACH, CONTEXT, STRETCH, MODELS, WAYS, SAME, rotaryDims, inverseFrequencies, rotate, share, score, round,
    angle, tableError, errorCurve,
  };
})();

if (typeof module !== "undefined") module.exports = rotary;
