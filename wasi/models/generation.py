"""Text generation by a decoder: greedy, or sampled with temperature and top-p."""

import numpy as np


def generate(model, tokens, n_tokens, temperature=0.0, top_p=1.0, seed=0, stop=(), on_token=None):
    """Continues a prompt by up to n_tokens tokens, each computed from a cache of the keys and values before it.

    Parameters: model, a Llama language model; tokens, the prompt's ids; temperature, 0 for the most probable token each time;
    top_p in (0, 1]: sample only among the fewest tokens that together have this probability; seed of the sampling;
    stop: ids that end the text (not part of the result); on_token(id), called with each new id, ends it by returning True.
    Returns the new ids as a list, fewer than n_tokens where a stop token came or the context is full.
    Raises ValueError for a prompt that is empty or fills the context, ids out of range, and impossible numbers;
    FloatingPointError where logits are not finite.
    """
    if model.architecture != "llama" or model.config.num_classes is not None:
        raise ValueError("model: expected a language model, got a classifier")
    tokens = np.asarray(tokens)
    if tokens.size and (tokens.ndim != 1 or tokens.dtype.kind not in "iu"):
        raise TypeError(f"tokens: expected a list of ids, got {tokens.dtype} {tokens.shape}")
    tokens, context = tokens.astype(np.int64), model.config.max_length
    if not 1 <= tokens.size < context:
        raise ValueError(f"tokens: expected a prompt of 1 to {context - 1} tokens, which leaves room in the context of "
                         f"{context}, got {tokens.size}")
    for name, value, good in (("n_tokens", n_tokens, n_tokens >= 0), ("temperature", temperature, 0 <= temperature < np.inf),
                              ("top_p", top_p, 0 < top_p <= 1)):
        if not good:
            raise ValueError(f"{name}: expected {'a share in (0, 1]' if name == 'top_p' else 'a number from 0'}, got {value}")
    rng = np.random.default_rng(seed)
    n_tokens = min(n_tokens, context - tokens.size)
    caches = model.new_caches(1, tokens.size + n_tokens)
    new = []
    for _ in range(n_tokens):
        logits = model.extend(tokens[None] if not new else np.array([new[-1:]]), caches)[0]
        if not np.isfinite(logits).all():
            raise FloatingPointError("the logits are not finite: the weights hold NaN, Inf or too large numbers")
        token = int(logits.argmax()) if temperature == 0 else sample(logits, temperature, top_p, rng)
        if token in stop:
            break
        new.append(token)
        if on_token and on_token(token):
            break
    return new


def sample(logits, temperature, top_p, rng):
    """An id drawn with probability softmax(logits / temperature), among the most probable ids that make up top_p."""
    z = logits.astype(np.float64)
    p = np.exp((z - z.max()) / temperature)
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    total = np.cumsum(p[order])
    kept = order[: int(np.searchsorted(total, top_p)) + 1]
    return int(rng.choice(kept, p=p[kept] / p[kept].sum()))


def perplexity(model, tokens, length=None, batch_size=8):
    """exp of the mean cross-entropy of each next token, over windows of `length` (default: the context) of a long text.

    tokens: 1-D ids; what does not fill a window is left out. Raises ValueError where the text is shorter than one window.
    """
    length = length or model.config.max_length
    tokens = np.asarray(tokens, np.int64)
    n = (tokens.size - 1) // length
    if n < 1:
        raise ValueError(f"tokens: expected at least {length + 1}, one window and the token after it, got {tokens.size}")
    inputs, targets = (tokens[s : s + n * length].reshape(n, length) for s in (0, 1))
    total = 0.0
    for start in range(0, n, batch_size):
        part = slice(start, start + batch_size)
        loss, _, _ = model.loss(model.forward(np.ascontiguousarray(inputs[part])), targets[part], need_gradient=False)
        total += loss * len(inputs[part])
    return float(np.exp(total / n))
