package org.sampan.core;

/** Whether a model fits in memory, computed from its header before anything is loaded. An estimate from above. */
public final class Fit {
    public enum Verdict { FITS, TIGHT, TOO_LARGE }

    private static final int[] CONTEXTS = {4096, 2048, 1024};
    /** Tokens of a prompt that llama.cpp computes at once: the logits and activations of so many are reserved. */
    private static final long BATCH = 512;
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

    static long need(Gguf model, int context) {
        long width = model.vocabulary + 8 * model.number("embedding_length", 0) + 3 * model.layer("feed_forward_length", 0, 0);
        return plus(plus(model.tensors, cache(model, context)), plus(BATCH * 4 * width, ENGINE + TOKEN * model.vocabulary));
    }

    /** Keys and values in 16 bits for each layer with attention, and the state of each layer without. */
    static long cache(Gguf model, int context) {
        long embedding = model.number("embedding_length", 0);
        long interval = Math.max(1, model.number("full_attention_interval", 1));
        long state = 4 * times(model.number("ssm.inner_size", 0), model.number("ssm.state_size", 0));
        long bytes = 0;
        // with latent attention the values are a part of the keys
        boolean latent = model.number("attention.key_length_mla", 0) > 0;
        // the last blocks may be of a head that predicts further tokens, which nobody here asks for
        long own = model.number("block_count", 0) - Math.max(0, model.number("nextn_predict_layers", 0));
        int layers = (int) Math.min(4096, Math.max(0, own));
        for (int layer = 0; layer < layers; layer++) {
            long heads = Math.max(1, model.layer("attention.head_count", layer, 1));
            long pairs = model.layer("attention.head_count_kv", layer, heads);
            long key = model.number("attention.key_length", embedding / heads);
            long value = latent ? 0 : model.number("attention.value_length", embedding / heads);
            boolean recurrent = pairs == 0 || (layer + 1) % interval != 0;
            bytes = plus(bytes, recurrent ? state : times(2L * context, times(pairs, plus(key, value))));
        }
        return bytes;
    }

    /** A hostile header may hold any number: too large stays too large. */
    private static long plus(long a, long b) {
        return a < 0 || b < 0 || a > Long.MAX_VALUE / 8 - b ? Long.MAX_VALUE / 8 : a + b;
    }

    private static long times(long a, long b) {
        return a < 0 || b < 0 || (b > 0 && a > Long.MAX_VALUE / 8 / b) ? Long.MAX_VALUE / 8 : a * b;
    }
}
