package org.sampan.core;

import java.io.BufferedInputStream;
import java.io.EOFException;
import java.io.File;
import java.io.FileInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** The header of a GGUF file (versions 2 and 3, little-endian): what the app must know before it loads a model. */
public final class Gguf {
    private static final int STRING = 16 << 20;
    private static final long COUNT = 1 << 20;
    private static final long ARRAY = 1 << 24;
    /** Values of an array that are kept: numbers per layer. Longer ones are vocabularies. */
    private static final int KEPT = 1024;
    private static final Pattern BLOCK = Pattern.compile("blk\\.(\\d{1,9})\\.");
    private static final int[] WIDTH = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    /** ggml's types: {values of a block, bytes of a block}, from ggml-common.h; {0, 0} where there is no such type. */
    private static final int[][] TYPES = {
        {1, 4}, {1, 2}, {32, 18}, {32, 20}, {0, 0}, {0, 0}, {32, 22}, {32, 24}, {32, 34}, {32, 36},
        {256, 84}, {256, 110}, {256, 144}, {256, 176}, {256, 210}, {256, 292}, {256, 66}, {256, 74}, {256, 98}, {256, 50},
        {32, 18}, {256, 110}, {256, 82}, {256, 136}, {1, 1}, {1, 2}, {1, 4}, {1, 8}, {1, 8}, {256, 56},
        {1, 2}, {0, 0}, {0, 0}, {0, 0}, {256, 54}, {256, 66}, {0, 0}, {0, 0}, {0, 0}, {32, 17}, {64, 36}, {128, 18}, {64, 18},
    };

    /** What is wrong with a file. */
    public enum Fault { MISSING, NOT_GGUF, TRUNCATED, SPLIT, UNKNOWN }

    public static final class Bad extends Exception {
        public final Fault fault;

        Bad(Fault fault, String detail) {
            super(detail);
            this.fault = fault;
        }
    }

    public final String architecture;
    /** Bytes of all tensors. */
    public final long tensors;
    /** Rows of the embedding. */
    public final long vocabulary;
    private final Map<String, Object> keys;
    /** Bytes behind the header; of them, those of each block of layers, by its number. */
    private final long data;
    private final Map<Long, Long> blocks;

    private Gguf(Map<String, Object> keys, long tensors, long vocabulary, long data, Map<Long, Long> blocks) {
        this.keys = keys;
        this.data = data;
        this.blocks = blocks;
        Object named = keys.get("general.architecture");
        this.architecture = named instanceof String ? (String) named : "";
        this.tensors = tensors;
        this.vocabulary = vocabulary;
    }

    /** A number of the architecture, such as "block_count", or `absent`. */
    long number(String key, long absent) {
        Object value = keys.get(architecture + "." + key);
        return value instanceof Long ? (Long) value : absent;
    }

    /** One number per layer: an array, or one number for all. */
    long layer(String key, int layer, long absent) {
        Object value = keys.get(architecture + "." + key);
        if (value instanceof List) {
            List<?> values = (List<?>) value;
            return layer < values.size() ? (Long) values.get(layer) : absent;
        }
        return value instanceof Long ? (Long) value : absent;
    }

    /** Bytes that are loaded of a model with so many layers: the blocks behind them are of no use to it. */
    long weights(long layers) {
        long bytes = data;
        for (Map.Entry<Long, Long> block : blocks.entrySet()) {
            bytes -= block.getKey() >= layers ? block.getValue() : 0;
        }
        return Math.max(0, bytes);
    }

    /** Reads the header and compares what it promises with the file's length. */
    public static Gguf read(File file) throws Bad, IOException {
        if (!file.isFile()) {
            throw new Bad(Fault.MISSING, file.getName());
        }
        long length = file.length();
        try (InputStream in = new BufferedInputStream(new FileInputStream(file), 1 << 16)) {
            return new Reader(in, length).header();
        } catch (EOFException e) {
            throw new Bad(Fault.TRUNCATED, file.getName() + ": the header is longer than the file of " + length + " bytes");
        }
    }

    private static final class Reader {
        private final InputStream in;
        private final long length;
        private long at;

        Reader(InputStream in, long length) {
            this.in = in;
            this.length = length;
        }

        Gguf header() throws Bad, IOException {
            if (length < 4) {
                throw new Bad(length == 0 ? Fault.TRUNCATED : Fault.NOT_GGUF, length + " bytes");
            }
            if (number(4) != 0x46554747) {
                throw new Bad(Fault.NOT_GGUF, "expected GGUF as the first four bytes");
            }
            long version = number(4);
            if (version != 2 && version != 3) {
                throw new Bad(Fault.UNKNOWN, "version " + version);
            }
            long tensors = count(COUNT, "tensors");
            long pairs = count(COUNT, "keys");
            Map<String, Object> keys = new HashMap<>();
            for (long i = 0; i < pairs; i++) {
                String key = string();
                keys.put(key, value((int) number(4), key));
            }
            Object parts = keys.get("split.count");
            if (parts instanceof Long && (Long) parts > 1) {
                throw new Bad(Fault.SPLIT, "one of " + parts + " files");
            }
            Object alignment = keys.containsKey("general.alignment") ? keys.get("general.alignment") : Long.valueOf(32);
            if (!(alignment instanceof Long) || (Long) alignment < 1 || (Long) alignment > 1 << 20) {
                throw new Bad(Fault.UNKNOWN, "general.alignment " + alignment);
            }
            return layout(keys, tensors, (Long) alignment);
        }

        private Gguf layout(Map<String, Object> keys, long tensors, long alignment) throws Bad, IOException {
            long sum = 0;
            long end = 0;
            long vocabulary = 0;
            Map<Long, Long> blocks = new HashMap<>();
            for (long i = 0; i < tensors; i++) {
                String name = string();
                long dimensions = number(4);
                if (dimensions < 1 || dimensions > 4) {
                    throw new Bad(Fault.UNKNOWN, name + ": " + dimensions + " dimensions");
                }
                long values = 1;
                long last = 1;
                for (long d = 0; d < dimensions; d++) {
                    last = number(8);
                    if (last < 1 || values > (1L << 44) / last) {
                        throw new Bad(Fault.UNKNOWN, name + ": its shape");
                    }
                    values *= last;
                }
                int type = (int) number(4);
                if (type < 0 || type >= TYPES.length || TYPES[type][0] == 0 || values % TYPES[type][0] != 0) {
                    throw new Bad(Fault.UNKNOWN, name + ": type " + type);
                }
                long bytes = values / TYPES[type][0] * TYPES[type][1];
                long offset = number(8);
                if (offset < 0 || offset > 1L << 48) {
                    throw new Bad(Fault.UNKNOWN, name + ": offset " + offset);
                }
                sum += bytes;
                end = Math.max(end, offset + bytes);
                if (name.equals("token_embd.weight")) {
                    vocabulary = last;
                }
                Matcher block = BLOCK.matcher(name);
                if (block.lookingAt()) {
                    Long number = Long.valueOf(block.group(1));
                    Long before = blocks.get(number);
                    blocks.put(number, padded(bytes, alignment) + (before == null ? 0 : before));
                }
            }
            long data = padded(at, alignment);
            if (data + end > length) {
                throw new Bad(Fault.TRUNCATED, "expected " + (data + end) + " bytes, found " + length);
            }
            return new Gguf(keys, sum, vocabulary, length - data, blocks);
        }

        private static long padded(long bytes, long alignment) {
            return (bytes + alignment - 1) / alignment * alignment;
        }

        private long number(int width) throws IOException {
            long value = 0;
            for (int i = 0; i < width; i++) {
                int b = in.read();
                if (b < 0) {
                    throw new EOFException();
                }
                value |= (long) b << 8 * i;
            }
            at += width;
            return value;
        }

        private long count(long limit, String what) throws Bad, IOException {
            long n = number(8);
            if (n < 0 || n > limit) {
                throw new Bad(Fault.UNKNOWN, Long.toUnsignedString(n) + " " + what);
            }
            return n;
        }

        private String string() throws Bad, IOException {
            int n = (int) count(STRING, "bytes in a text");
            if (n > length - at) {
                throw new EOFException();
            }
            byte[] bytes = new byte[n];
            for (int read = 0; read < n; ) {
                int more = in.read(bytes, read, n - read);
                if (more < 0) {
                    throw new EOFException();
                }
                read += more;
            }
            at += n;
            return new String(bytes, StandardCharsets.UTF_8);
        }

        private void skip(long n) throws IOException {
            if (n > length - at) {
                throw new EOFException();
            }
            for (long left = n; left > 0; ) {
                long skipped = in.skip(left);
                if (skipped <= 0) {
                    throw new EOFException();
                }
                left -= skipped;
            }
            at += n;
        }

        /** A Long, a String, a list of Longs, or null for what is not kept. */
        private Object value(int type, String key) throws Bad, IOException {
            if (type == 8) {
                return string();
            }
            if (type != 9) {
                return scalar(type, key);
            }
            int element = (int) number(4);
            long n = count(ARRAY, "values of " + key);
            if (element == 8) {
                for (long i = 0; i < n; i++) {
                    skip(count(STRING, "bytes in a text"));
                }
                return null;
            }
            if (element < 0 || element >= WIDTH.length || WIDTH[element] == 0) {
                throw new Bad(Fault.UNKNOWN, key + ": array of type " + element);
            }
            if (n > KEPT || element == 6 || element == 12) {
                skip(n * WIDTH[element]);
                return null;
            }
            List<Long> values = new ArrayList<>();
            for (long i = 0; i < n; i++) {
                values.add((Long) scalar(element, key));
            }
            return values;
        }

        private Object scalar(int type, String key) throws Bad, IOException {
            if (type < 0 || type >= WIDTH.length || WIDTH[type] == 0) {
                throw new Bad(Fault.UNKNOWN, key + ": type " + type);
            }
            int width = WIDTH[type];
            long raw = number(width);
            if (type == 6 || type == 12) {
                return null;
            }
            boolean signed = type == 1 || type == 3 || type == 5;
            return signed ? raw << 64 - 8 * width >> 64 - 8 * width : raw;
        }
    }
}
