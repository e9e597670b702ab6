/* What the page on checkpoints computes: a byte-level BPE tokenizer, a forward pass of GPT-NeoX with a
   cache of keys and values, and sampling. It follows pythia_core/data/tokenizer.py, pythia_core/model.py
   and pythia_core/evaluation/generate.py; the tests run both and compare. No library, no request. */
"use strict";

const pythiaModel = (() => {
  // --- tokenizer -------------------------------------------------------------------------------

  // The white space of Unicode; \s in JavaScript has U+FEFF too and lacks U+0085.
  const SPACE = "\\t-\\r\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
  const PIECES = new RegExp(
    `'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^${SPACE}\\p{L}\\p{N}]+` +
    `|[${SPACE}]+(?![^${SPACE}])|[${SPACE}]+`, "gu");
  const LONE = /\p{Surrogate}/gu; // the u flag keeps pairs together

  /** The characters that stand for the bytes 0..255. */
  function byteCharacters() {
    const printable = (b) => (b > 32 && b < 127) || (b > 160 && b < 256 && b !== 173);
    let others = 256;
    return [...Array(256).keys()].map((b) => String.fromCharCode(printable(b) ? b : others++));
  }

  /** A tokenizer from its tokens, by id ("" for special ones), and its merges "a b", best first. */
  function tokenizer(tokens, merges) {
    const characters = byteCharacters();
    const bytesOf = new Map(characters.map((character, byte) => [character, byte]));
    const ids = new Map(tokens.map((token, id) => [token, id]));
    const ranks = new Map(merges.map((pair, rank) => [pair, rank]));
    const known = new Map();

    /** Token ids of one piece, given as characters that stand for bytes. */
    function idsOfPiece(piece) {
      if (known.has(piece)) return known.get(piece);
      const parts = Array.from(piece);
      for (;;) {
        let best = Infinity, place = -1;
        for (let i = 0; i + 1 < parts.length; i++) {
          const rank = ranks.get(`${parts[i]} ${parts[i + 1]}`);
          if (rank < best) [best, place] = [rank, i];
        }
        if (place < 0) break;
        parts.splice(place, 2, parts[place] + parts[place + 1]);
      }
      const found = parts.map((part) => ids.get(part));
      if (known.size < 5000) known.set(piece, found);
      return found;
    }

    /** Token ids of a text; half of a surrogate pair counts as U+FFFD. */
    function encode(text) {
      const whole = text.replace(LONE, "\ufffd").normalize("NFC"), found = [];
      for (const piece of whole.match(PIECES) || []) {
        const bytes = new TextEncoder().encode(piece);
        found.push(...idsOfPiece(Array.from(bytes, (byte) => characters[byte]).join("")));
      }
      return found;
    }

    /** The text of tokens; bytes that are not UTF-8 become U+FFFD, special tokens nothing. */
    function decode(list) {
      const bytes = list.flatMap((id) => Array.from(tokens[id] || "", (c) => bytesOf.get(c)));
      return new TextDecoder("utf-8", { ignoreBOM: true }).decode(new Uint8Array(bytes));
    }
    return { encode, decode };
  }

  // --- model -----------------------------------------------------------------------------------

  /** Weights by name, from base64: the float32 values in the order of the layout, then the int8 ones.
      A matrix has a float32 factor per row. */
  function weights(layout, base64) {
    const text = atob(base64), bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i); // Uint8Array.from takes 20 times as long
    const count = layout.reduce((sum, [, rows]) => sum + rows, 0);
    const floats = new Float32Array(bytes.buffer, 0, count);
    const whole = new Int8Array(bytes.buffer, 4 * count);
    const needed = layout.reduce((sum, [, rows, columns]) => sum + rows * columns, 0);
    if (whole.length !== needed) throw new Error("a checkpoint has the wrong length");
    const found = {};
    let float = 0, int = 0;
    for (const [name, rows, columns] of layout) {
      if (!columns) {
        found[name] = floats.subarray(float, float + rows);
      } else {
        const matrix = found[name] = new Float32Array(rows * columns);
        for (let row = 0; row < rows; row++) {
          const factor = floats[float + row], end = (row + 1) * columns;
          for (let i = row * columns; i < end; i++) matrix[i] = whole[int + i] * factor;
        }
        int += rows * columns;
      }
      float += rows;
    }
    return found;
  }

  /** matrix x + bias; the matrix has as many rows as the result has values. */
  function linear(x, matrix, bias, rows) {
    const y = new Float32Array(rows), columns = x.length;
    for (let row = 0, at = 0; row < rows; row++) {
      let sum = bias ? bias[row] : 0;
      for (let i = 0; i < columns; i++) sum += matrix[at++] * x[i];
      y[row] = sum;
    }
    return y;
  }

  function layerNorm(x, weight, bias, eps) {
    let mean = 0, square = 0;
    for (const value of x) mean += value / x.length;
    for (const value of x) square += (value - mean) ** 2 / x.length;
    const factor = 1 / Math.sqrt(square + eps);
    return x.map((value, i) => (value - mean) * factor * weight[i] + bias[i]);
  }

  const gelu = (x) => 0.5 * x * (1 + Math.tanh(0.7978845608 * x * (1 + 0.044715 * x * x)));

  /** An empty cache of keys and values for up to max_seq_len tokens. */
  function cache(config) {
    const size = config.max_seq_len * config.d_model;
    const layer = () => ({ keys: new Float32Array(size), values: new Float32Array(size) });
    return { length: 0, layers: Array.from({ length: config.n_layers }, layer) };
  }

  /** Rotate the first dims of one head of queries or keys for a position, in place. */
  function rotate(x, start, position, dims, base) {
    const half = dims / 2;
    for (let i = 0; i < half; i++) {
      const angle = Math.fround(position * Math.fround(base ** (-2 * i / dims)));
      const cos = Math.cos(angle), sin = Math.sin(angle);
      const a = x[start + i], b = x[start + half + i];
      x[start + i] = a * cos - b * sin;
      x[start + half + i] = b * cos + a * sin;
    }
  }

  /** Attention of the newest token, whose q, k and v of each head follow each other in qkv. */
  function attend(config, layer, qkv, position) {
    const d = config.d_model, dim = d / config.n_heads, out = new Float32Array(d);
    const dims = Math.trunc(dim * config.rotary_fraction), scores = new Float64Array(position + 1);
    for (let head = 0; head < config.n_heads; head++) {
      const q = 3 * dim * head, at = dim * head;
      rotate(qkv, q, position, dims, config.rotary_base);
      rotate(qkv, q + dim, position, dims, config.rotary_base);
      layer.keys.set(qkv.subarray(q + dim, q + 2 * dim), position * d + at);
      layer.values.set(qkv.subarray(q + 2 * dim, q + 3 * dim), position * d + at);
      let most = -Infinity, total = 0;
      for (let j = 0; j <= position; j++) {
        let score = 0;
        for (let i = 0; i < dim; i++) score += qkv[q + i] * layer.keys[j * d + at + i];
        scores[j] = score / Math.sqrt(dim);
        most = Math.max(most, scores[j]);
      }
      for (let j = 0; j <= position; j++) total += scores[j] = Math.exp(scores[j] - most);
      for (let j = 0; j <= position; j++) {
        const share = scores[j] / total;
        for (let i = 0; i < dim; i++) out[at + i] += share * layer.values[j * d + at + i];
      }
    }
    return out;
  }

  /** Add a token to the cache, and return its hidden state after the final LayerNorm. */
  function advance(config, w, state, id) {
    const d = config.d_model, eps = config.layer_norm_eps, position = state.length++;
    let x = w["embed_in.weight"].slice(id * d, (id + 1) * d);
    state.layers.forEach((layer, number) => {
      const of = (name) => w[`layers.${number}.${name}`];
      const full = (name, input, rows) =>
        linear(input, of(`${name}.weight`), of(`${name}.bias`), rows);
      const norm = (name) => layerNorm(x, of(`${name}.weight`), of(`${name}.bias`), eps);
      const qkv = full("attention.query_key_value", norm("input_layernorm"), 3 * d);
      const attended = full("attention.dense", attend(config, layer, qkv, position), d);
      const up = full("mlp.dense_h_to_4h", norm("post_attention_layernorm"), 4 * d).map(gelu);
      const down = full("mlp.dense_4h_to_h", up, d);
      x = x.map((value, i) => value + (attended[i] + down[i]));
    });
    return layerNorm(x, w["final_layer_norm.weight"], w["final_layer_norm.bias"], eps);
  }

  /** The logits of the next token after all ids, which are added to the cache. */
  function logits(config, w, state, ids) {
    let hidden = null;
    for (const id of ids) hidden = advance(config, w, state, id);
    return linear(hidden, w["embed_out.weight"], null, config.vocab_size);
  }

  // --- sampling --------------------------------------------------------------------------------

  function softmax(values, temperature = 1) {
    const shares = new Float64Array(values.length);
    let most = -Infinity, total = 0;
    for (const value of values) if (value > most) most = value;
    for (let i = 0; i < shares.length; i++) {
      total += shares[i] = Math.exp((values[i] - most) / temperature);
    }
    for (let i = 0; i < shares.length; i++) shares[i] /= total;
    return shares;
  }

  /** A generator of numbers in [0, 1), the same for the same seed (mulberry32). */
  function uniforms(seed) {
    let state = seed >>> 0;
    return () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let t = Math.imul(state ^ (state >>> 15), state | 1);
      t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
      return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
    };
  }

  /** The id at which the running sum of the probabilities passes u; temperature 0: the likeliest. */
  function choose(values, temperature, u) {
    if (temperature === 0) return values.indexOf(values.reduce((a, b) => Math.max(a, b), -Infinity));
    const shares = softmax(values, temperature);
    let sum = 0, last = 0;
    for (let id = 0; id < shares.length; id++) {
      if (shares[id] > 0) last = id;
      if ((sum += shares[id]) > u) return id;
    }
    return last;
  }

  /** Yield up to count sampled tokens after a prompt, until the end of a document.

      The numbers depend on the seed alone, so that models differ only if their probabilities do. */
  function* sample(config, w, state, first, { count, temperature, seed, eod }) {
    const random = uniforms(seed);
    let values = first;
    for (let n = 1; ; n++) {
      const id = choose(values, temperature, random());
      yield id;
      if (n === count || id === eod || state.length >= config.max_seq_len) return;
      values = logits(config, w, state, [id]);
    }
  }

  return { tokenizer, weights, cache, logits, softmax, uniforms, choose, sample };
})();

if (typeof module !== "undefined") module.exports = pythiaModel;
