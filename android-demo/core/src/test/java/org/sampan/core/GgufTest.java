package org.sampan.core;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertTrue;
import static org.junit.Assert.fail;

import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.File;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.util.Arrays;
import java.util.Random;
import org.junit.Rule;
import org.junit.Test;
import org.junit.rules.TemporaryFolder;

/** Headers written byte by byte; tests/test_android_core.py reads those that the converter writes. */
public class GgufTest {
    @Rule
    public final TemporaryFolder folder = new TemporaryFolder();

    /** A header in the making, from the format's description. */
    private static final class Writer {
        private final ByteArrayOutputStream out = new ByteArrayOutputStream();

        Writer number(long value, int width) {
            byte[] bytes = ByteBuffer.allocate(8).order(ByteOrder.LITTLE_ENDIAN).putLong(value).array();
            out.write(bytes, 0, width);
            return this;
        }

        Writer text(String text) {
            byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
            number(bytes.length, 8).out.write(bytes, 0, bytes.length);
            return this;
        }

        Writer start(long tensors, long keys) {
            return number(0x46554747, 4).number(3, 4).number(tensors, 8).number(keys, 8);
        }

        Writer string(String key, String value) {
            return text(key).number(8, 4).text(value);
        }

        Writer uint(String key, long value) {
            return text(key).number(4, 4).number(value, 4);
        }

        Writer tensor(String name, int type, long offset, long... shape) {
            text(name).number(shape.length, 4);
            for (long size : shape) {
                number(size, 8);
            }
            return number(type, 4).number(offset, 8);
        }

        byte[] padded(int data) {
            byte[] header = out.toByteArray();
            return Arrays.copyOf(header, (header.length + 31) / 32 * 32 + data);
        }
    }

    private static Writer small() {
        return new Writer().start(2, 9).string("general.architecture", "qwen3").string("general.name", "小船")
            .uint("qwen3.block_count", 4).uint("qwen3.context_length", 2000).uint("qwen3.embedding_length", 64)
            .uint("qwen3.attention.head_count", 4).uint("qwen3.attention.head_count_kv", 2).uint("qwen3.feed_forward_length", 128)
            .text("tokens").number(9, 4).number(8, 4).number(2, 8).text("a").text("b")
            .tensor("token_embd.weight", 8, 0, 64, 100).tensor("x", 0, 6816, 3);
    }

    private Gguf read(byte[] bytes) throws IOException, Gguf.Bad {
        File file = folder.newFile();
        Files.write(file.toPath(), bytes);
        return Gguf.read(file);
    }

    private void refused(Gguf.Fault fault, String detail, byte[] bytes) throws IOException {
        try {
            read(bytes);
            fail("read: " + detail);
        } catch (Gguf.Bad e) {
            assertEquals(detail, e.getMessage().replaceAll("^junit[0-9]+.tmp", "file"));
            assertEquals(fault, e.fault);
        }
    }

    @Test
    public void aWholeModel() throws Exception {
        Gguf model = read(small().padded(6816 + 12));
        assertEquals("qwen3", model.architecture);
        assertEquals(100 * 64 / 32 * 34 + 12, model.tensors);
        assertEquals(100, model.vocabulary);
    }

    @Test
    public void eachCutIsTold() throws Exception {
        byte[] whole = small().padded(6816 + 12);
        refused(Gguf.Fault.TRUNCATED, "expected " + whole.length + " bytes, found " + (whole.length - 1), Arrays.copyOf(whole, whole.length - 1));
        for (int n = 0; n < whole.length; n += n < 400 ? 1 : 97) {
            try {
                read(Arrays.copyOf(whole, n));
                fail("read " + n + " bytes");
            } catch (Gguf.Bad e) {
                assertEquals("" + n, n > 0 && n < 4 ? Gguf.Fault.NOT_GGUF : Gguf.Fault.TRUNCATED, e.fault);
            }
        }
    }

    @Test
    public void whatIsNoModelIsTold() throws Exception {
        refused(Gguf.Fault.NOT_GGUF, "expected GGUF as the first four bytes", "<!DOCTYPE html>".getBytes(StandardCharsets.UTF_8));
        refused(Gguf.Fault.UNKNOWN, "version 1", new Writer().number(0x46554747, 4).number(1, 4).padded(64));
        refused(Gguf.Fault.SPLIT, "one of 3 files", new Writer().start(0, 1).uint("split.count", 3).padded(0));
        try {
            Gguf.read(new File(folder.getRoot(), "none.gguf"));
            fail();
        } catch (Gguf.Bad e) {
            assertEquals(Gguf.Fault.MISSING, e.fault);
        }
    }

    @Test
    public void noNumberIsTrusted() throws Exception {
        refused(Gguf.Fault.UNKNOWN, "18446744073709551615 tensors", new Writer().start(-1, 0).padded(64));
        refused(Gguf.Fault.UNKNOWN, "1099511627776 keys", new Writer().start(0, 1L << 40).padded(64));
        refused(Gguf.Fault.UNKNOWN, "9223372036854775807 bytes in a text", new Writer().start(0, 1).number(Long.MAX_VALUE, 8).padded(64));
        refused(Gguf.Fault.TRUNCATED, "file: the header is longer than the file of 64 bytes", new Writer().start(0, 1).number(1 << 23, 8).padded(32));
        refused(Gguf.Fault.UNKNOWN, "k: type 13", new Writer().start(0, 1).text("k").number(13, 4).padded(64));
        refused(Gguf.Fault.UNKNOWN, "k: array of type 9", new Writer().start(0, 1).text("k").number(9, 4).number(9, 4).number(1, 8).padded(64));
        refused(Gguf.Fault.UNKNOWN, "general.alignment 0", new Writer().start(0, 1).uint("general.alignment", 0).padded(64));
        refused(Gguf.Fault.UNKNOWN, "t: 5 dimensions", new Writer().start(1, 0).tensor("t", 0, 0, 1, 1, 1, 1, 1).padded(64));
        refused(Gguf.Fault.UNKNOWN, "t: its shape", new Writer().start(1, 0).tensor("t", 0, 0, 1L << 40, 1L << 40).padded(64));
        refused(Gguf.Fault.UNKNOWN, "t: its shape", new Writer().start(1, 0).tensor("t", 0, 0, -1).padded(64));
        refused(Gguf.Fault.UNKNOWN, "t: type 4", new Writer().start(1, 0).tensor("t", 4, 0, 32).padded(64));
        refused(Gguf.Fault.UNKNOWN, "t: type 2", new Writer().start(1, 0).tensor("t", 2, 0, 31).padded(64));
        refused(Gguf.Fault.UNKNOWN, "t: offset -1", new Writer().start(1, 0).tensor("t", 0, -1, 32).padded(64));
    }

    @Test
    public void brokenBytesAreReadOrRefused() throws Exception {
        byte[] whole = small().padded(6816 + 12);
        Random random = new Random(14);
        int refused = 0;
        for (int i = 0; i < 3000; i++) {
            byte[] broken = whole.clone();
            for (int flips = 1 + random.nextInt(3); flips > 0; flips--) {
                broken[random.nextInt(450)] = (byte) (random.nextInt(4) == 0 ? 0xff : random.nextInt());
            }
            File file = new File(folder.getRoot(), "broken.gguf");
            Files.write(file.toPath(), broken);
            try {
                Fit fit = Fit.of(Gguf.read(file), 8L << 30, 4L << 30);
                assertTrue("" + i, fit.need >= 0 && fit.context >= 1);
            } catch (Gguf.Bad e) {
                refused++;
            }
        }
        assertTrue("" + refused, refused > 500 && refused < 3000);
    }

    private static final long MB = 1 << 20;

    @Test
    public void theContextIsTheLongestThatFits() throws Exception {
        Gguf model = read(small().padded(6816 + 12));
        assertEquals("2000 tokens take 2048 cells", 4 * 2L * 2048 * 2 * 32, Fit.cache(model, 2000));
        Fit fit = Fit.of(model, 4096 * MB, 3000 * MB);
        assertEquals(Fit.Verdict.FITS, fit.verdict);
        assertEquals("not longer than it was trained for", 2000, fit.context);
        assertEquals(Fit.need(model, 2000), fit.need);
        assertEquals(3072 * MB, fit.limit);
        assertEquals(1024, Fit.of(model, 4096 * MB, Fit.need(model, 1024)).context);
        assertEquals(Fit.Verdict.FITS, Fit.of(model, 4096 * MB, Fit.need(model, 1024)).verdict);
    }

    @Test
    public void blocksBehindTheLayersAreNotCounted() throws Exception {
        Writer file = new Writer().start(4, 4).string("general.architecture", "qwen3").uint("qwen3.block_count", 3)
            .uint("qwen3.embedding_length", 64).uint("qwen3.nextn_predict_layers", 1)
            .tensor("token_embd.weight", 0, 0, 64, 2).tensor("blk.1.x.weight", 0, 512, 9).tensor("blk.2.x.weight", 0, 576, 9)
            .tensor("blk.2.nextn.x", 0, 640, 1);
        Gguf model = read(file.padded(672));
        assertEquals(672, model.weights(3));
        assertEquals("what lies behind a block up to the next place of a tensor goes with it", 672 - 64 - 32, model.weights(2));
        assertEquals(512, model.weights(0));
        assertEquals(Fit.need(model, 1024), Fit.need(read(file.padded(672 + 32)), 1024) - 32);
    }

    @Test
    public void tightAndTooLarge() throws Exception {
        Gguf model = read(small().padded(6816 + 12));
        Fit tight = Fit.of(model, 4096 * MB, 1 * MB);
        assertEquals(Fit.Verdict.TIGHT, tight.verdict);
        assertEquals(1024, tight.context);
        Fit large = Fit.of(model, 512 * MB, 512 * MB);
        assertEquals(Fit.Verdict.TOO_LARGE, large.verdict);
        assertEquals(0, large.limit);
    }

    @Test
    public void copiesAreWholeModelsOrNothing() throws Exception {
        byte[] whole = small().padded(6816 + 12);
        File target = new File(folder.getRoot(), "models/m.gguf");
        long[] seen = {0};
        Copy.to(target, new ByteArrayInputStream(whole), bytes -> {
            seen[0] = bytes;
            return true;
        });
        assertEquals(whole.length, seen[0]);
        assertTrue(Arrays.equals(whole, Files.readAllBytes(target.toPath())));
        File other = new File(folder.getRoot(), "models/other.gguf");
        try {
            Copy.to(other, new ByteArrayInputStream(whole, 0, whole.length - 1), bytes -> true);
            fail();
        } catch (Gguf.Bad e) {
            assertEquals(Gguf.Fault.TRUNCATED, e.fault);
        }
        try {
            Copy.to(other, new ByteArrayInputStream(whole), bytes -> false);
            fail();
        } catch (Copy.Stopped e) {
            assertEquals("[m.gguf]", Arrays.toString(target.getParentFile().list()));
        }
    }

    @Test
    public void namesOfOtherAppsLeadNowhereElse() {
        String[][] cases = {
            {"qwen 0.6b (int4).gguf", "qwen 0.6b (int4).gguf"}, {"../../etc/passwd", "passwd.gguf"}, {"..\\..\\a.GGUF", "a.gguf"},
            {"", "model.gguf"}, {"..", "model.gguf"}, {".gguf", "gguf.gguf"}, {"a\0b\nc", "a_b_c.gguf"}, {"通义.gguf", "通义.gguf"}, {"x/", "model.gguf"},
        };
        for (String[] one : cases) {
            assertEquals(one[1], Copy.name(one[0]));
        }
        char[] many = new char[5000];
        Arrays.fill(many, '好');
        assertEquals(65, Copy.name(new String(many)).length());
    }
}
