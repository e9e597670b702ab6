/* The arithmetic of the recipe's calculator. It repeats pythia_core/config.py (parameters),
   training/metrics.py (FLOP) and training/memory.py, and pythia_book/bench/cost_model.py and
   pages/cluster.py (time); the tests run it in node and compare. `c` holds the constants of the page. */
"use strict";

const recipe = (() => {
  /** Parameters in all, and outside the two vocabulary matrices. */
  function parameters({ layers, width, vocabulary }) {
    const inside = layers * (12 * width * width + 13 * width) + 2 * width;
    return { inside, all: inside + 2 * vocabulary * width };
  }

  /** FLOP of training per token: the products that are performed, forward and backward. */
  function flopPerToken({ layers, width, vocabulary, seqLen }) {
    return 6 * (12 * width * width * layers + vocabulary * width) + 6 * width * (seqLen + 1) * layers;
  }

  const bytesOf = (precision) => (precision === "fp32" ? 4 : 2);

  function activationBytes(c, { layers, width, precision }) {
    const size = bytesOf(precision);
    const saved = layers * (c.residual * width + size * width * (2 + 3 + 1 + 4 + 4));
    return saved + c.residual * width + size * width * (1 + 4);
  }

  /** Bytes of memory per GPU without activations, if `shared` GPUs share the state. */
  function fixedBytes(c, x, shared) {
    const { inside, all } = parameters(x), size = bytesOf(x.precision), embedding = x.vocabulary * x.width;
    if (shared === 1) return c.reserve + all * (x.precision === "fp32" ? 16 : 18) + 4 * embedding;
    const block = Math.floor(inside / x.layers);
    const gathered = block * (2 * size + size + 4) + embedding * (size + Math.max(size + 4, 12));
    return c.reserve + Math.ceil(16 * all / shared) + gathered;
  }

  function mostRows(c, x, shared) {
    const left = c.gpuBytes - fixedBytes(c, x, shared);
    return Math.max(0, Math.floor(left / (x.seqLen * activationBytes(c, x))));
  }

  /** The value at `x` of a curve through points, flat beyond its ends. */
  function interpolate(curve, x) {
    if (x <= curve[0][0]) return curve[0][1];
    for (let i = 1; i < curve.length; i++) {
      const [[a, low], [b, high]] = [curve[i - 1], curve[i]];
      if (x <= b) return low + (high - low) * (x - a) / (b - a);
    }
    return curve[curve.length - 1][1];
  }

  /** Predicted nanoseconds per token of a step without the optimizer; null without an estimate. */
  function nanoseconds(c, x, microTokens) {
    const { layers, width: d, heads, vocabulary, seqLen } = x, rates = c.attention[d / heads];
    if (!rates) return null;
    const efficiency = interpolate(c.efficiency, d);
    const slower = Math.sqrt(Math.max(1, c.attentionLength / seqLen));
    const scores = 2 * d * (seqLen + 1) * layers, [fixed, perChunk] = c.vocabWeightBytes;
    const chunks = Math.ceil(microTokens * vocabulary / c.chunkLogits);
    const weightBytes = 12 * d * d * layers * c.weightBytes +
      d * vocabulary * (c.embeddingBytes + fixed + perChunk * chunks);
    const picoseconds = 72 * d * d * layers / (efficiency * c.matmul) +
      Math.max(6 * d * vocabulary / (Math.min(efficiency + c.vocabExtra, c.vocabCap) * c.matmul),
        10 * vocabulary / c.vocabBandwidth) +
      scores / (rates[0] / slower) + 2.5 * scores / (rates[1] / slower) +
      (c.passes * layers + c.ends) * 2 * d / c.bandwidth + c.lossBytes * vocabulary / c.bandwidth +
      weightBytes / microTokens / c.copy;
    return picoseconds / 1e3;
  }

  /** Seconds of an update on the GPUs; null without an estimate. */
  function seconds(c, x, layout) {
    const { all } = parameters(x), { gpus } = x, { split, microBatch, rows } = layout, node = Math.min(c.node, gpus);
    const ns = nanoseconds(c, x, microBatch * x.seqLen);
    if (ns === null || x.precision !== "bf16") return null;
    const compute = 1e-9 * ns * rows * x.seqLen + 38 * all / (c.copy * 1e12) / split;
    const passes = Math.ceil(rows / microBatch), [gradient, copy] = [c.gradientBytes * all, c.copyBytes * all];
    const inNode = (node - 1) / node * (split === 1 ? 2 * gradient : passes * (2 * copy + gradient));
    const apart = 1 - c.node / gpus;
    const between = gpus <= c.node ? 0 : split > c.node ? apart * inNode
      : 2 * apart * (split === 1 ? 1 : passes) * gradient / c.node;
    const waiting = inNode / c.nvlink + between / c.fabric;
    return split === 1 ? compute + waiting : Math.max(compute, waiting);
  }

  /** Everything about training a model; `problem` says why something is missing. */
  function plan(c, x) {
    const count = parameters(x), tokens = x.updates * x.rows * x.seqLen, flop = tokens * flopPerToken(x);
    const found = { ...count, tokens, flop, rule: 6 * count.all * tokens };
    if (x.width % x.heads) return { ...found, problem: `${x.heads} heads do not divide a width of ${x.width}.` };
    if (x.gpus > x.rows) return { ...found, problem: `There are more GPUs than rows per update, ${x.rows}.` };
    if (x.rows % x.gpus) return { ...found, problem: `${x.gpus} GPUs cannot share ${x.rows} rows evenly.` };
    const split = [1, Math.min(c.node, x.gpus)].find((n) => mostRows(c, x, n)) || x.gpus;
    const rows = x.rows / x.gpus, most = Math.min(rows, Math.floor(c.microTokens / x.seqLen), mostRows(c, x, split));
    const microBatch = most ? 2 ** Math.floor(Math.log2(most)) : 0;
    const shared = { weights: 4, moments: 8, gradients: 4 };
    const parts = Object.fromEntries(Object.entries(shared).map(([name, size]) => [name, Math.floor(size * count.all / split)]));
    const whole = Object.values(parts).reduce((sum, each) => sum + each, 0);
    parts.copies = fixedBytes(c, x, split) - c.reserve - whole;
    parts.activations = microBatch * x.seqLen * activationBytes(c, x);
    parts.reserve = c.reserve;
    const memory = Object.values(parts).reduce((sum, each) => sum + each, 0);
    const layout = { split, microBatch, rows, parts, memory };
    if (!microBatch) return { ...found, ...layout, problem: "Not one row fits into the memory of these GPUs; take more of them." };
    const update = seconds(c, x, layout), rate = x.gpus * c.utilization * c.peak;
    return {
      ...found, ...layout, seconds: update === null ? null : update * x.updates,
      fixed: x.precision === "bf16" ? flop / rate : null,
      problem: x.precision !== "bf16" ? "There is no estimate of time in fp32."
        : update === null ? `The cost model has no rates for heads of dimension ${x.width / x.heads}.` : "",
    };
  }

  return { parameters, flopPerToken, plan };
})();

if (typeof module !== "undefined") module.exports = recipe;
