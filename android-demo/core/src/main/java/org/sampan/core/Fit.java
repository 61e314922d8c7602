package org.sampan.core;

/** Whether a model fits in memory, computed from its header before anything is loaded. An estimate from above. */
public final class Fit {
    public enum Verdict { FITS, TIGHT, TOO_LARGE }

    private static final int[] CONTEXTS = {4096, 2048, 1024};
    /** Tokens of a prompt that llama.cpp computes at once: the logits and activations of so many are reserved. */
    private static final long BATCH = 512;
    /** A context is rounded up to so many. */
    private static final long CELLS = 256;
    /** The engine itself, and what its tokenizer holds for one token. */
    private static final long ENGINE = 32L << 20;
    private static final long TOKEN = 256;

    public final Verdict verdict;
    /** Tokens that a conversation may have. */
    public final int context;
    /** Bytes. */
    public final long need;
    public final long limit;

    private Fit(Verdict verdict, int context, long need, long limit) {
        this.verdict = verdict;
        this.context = context;
        this.need = need;
        this.limit = limit;
    }

    /**
     * The longest context that fits. `total` and `available` are the bytes that Android has and that are free now; a
     * quarter of all, and at least 512 MiB, is left to the system.
     */
    public static Fit of(Gguf model, long total, long available) {
        long limit = Math.max(0, total - Math.max(total / 4, 512L << 20));
        int trained = (int) Math.min(Integer.MAX_VALUE, Math.max(1, model.number("context_length", CONTEXTS[0])));
        Fit last = null;
        for (int wanted : CONTEXTS) {
            int context = Math.min(wanted, trained);
            long need = need(model, context);
            if (need <= Math.min(limit, available)) {
                return new Fit(Verdict.FITS, context, need, limit);
            }
            last = new Fit(need <= limit ? Verdict.TIGHT : Verdict.TOO_LARGE, context, need, limit);
        }
        return last;
    }

    /** What `sampan push` reckons with, too. */
    static long need(Gguf model, int context) {
        long embedding = model.number("embedding_length", 0);
        long inner = times(3, model.layer("feed_forward_length", 0, 0));
        // each expert of a token puts out as much as the layer
        long expert = plus(embedding, times(3, model.number("expert_feed_forward_length", 0)));
        long inside = Math.max(inner, times(model.number("expert_used_count", 0), expert));
        long values = plus(model.vocabulary, plus(times(8, embedding), inside));
        long work = plus(times(4 * BATCH, values), 2 * BATCH * cells(context)); // the mask has 16 bits
        return plus(plus(model.weights(layers(model)), cache(model, context)), plus(work, ENGINE + TOKEN * model.vocabulary));
    }

    /** Those of the model's own: the last blocks may be of a head that predicts further tokens, which nobody here asks for. */
    private static long layers(Gguf model) {
        return model.number("block_count", 0) - Math.max(0, model.number("nextn_predict_layers", 0));
    }

    private static long cells(int context) {
        return (context + CELLS - 1) / CELLS * CELLS;
    }

    /** Keys and values in 16 bits for each layer with attention, and the state of each layer without. */
    static long cache(Gguf model, int context) {
        long embedding = model.number("embedding_length", 0);
        long interval = Math.max(1, model.number("full_attention_interval", 1));
        long cells = cells(context);
        long state = state(model);
        long bytes = 0;
        // with latent attention the values are a part of the keys
        boolean latent = model.number("attention.key_length_mla", 0) > 0;
        int layers = (int) Math.min(4096, Math.max(0, layers(model)));
        for (int layer = 0; layer < layers; layer++) {
            long heads = Math.max(1, model.layer("attention.head_count", layer, 1));
            long pairs = model.layer("attention.head_count_kv", layer, heads);
            long key = model.number("attention.key_length", embedding / heads);
            long value = latent ? 0 : model.number("attention.value_length", embedding / heads);
            boolean told = model.layer("attention.recurrent_layers", layer, (layer + 1) % interval) != 0;
            boolean recurrent = told || pairs == 0;
            bytes = plus(bytes, recurrent ? state : times(2 * cells, times(pairs, plus(key, value))));
        }
        return bytes;
    }

    /** Of one layer, in 32 bits: those of its convolution and of its recurrence. */
    private static long state(Gguf model) {
        long inner = model.number("ssm.inner_size", 0);
        long size = model.number("ssm.state_size", 0);
        long columns = plus(inner, times(2, times(model.number("ssm.group_count", 0), size)));
        long head = model.number("kda.head_dim", 0);
        long kernel = Math.max(1, model.number("ssm.conv_kernel", head > 0 ? 4 : 1));
        if (head > 0) { // Kimi delta attention convolves queries, keys and values
            long width = times(head, Math.max(1, model.layer("attention.head_count", 0, 1)));
            return times(4, times(width, plus(times(3, kernel - 1), head)));
        }
        return times(4, plus(times(kernel - 1, columns), times(size, inner)));
    }

    /** A hostile header may hold any number: too large stays too large. */
    private static long plus(long a, long b) {
        return a < 0 || b < 0 || a > Long.MAX_VALUE / 8 - b ? Long.MAX_VALUE / 8 : a + b;
    }

    private static long times(long a, long b) {
        return a < 0 || b < 0 || (b > 0 && a > Long.MAX_VALUE / 8 / b) ? Long.MAX_VALUE / 8 : a * b;
    }
}
