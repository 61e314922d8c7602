package org.sampan.core;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.fail;

import java.util.Arrays;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.Map;
import org.junit.Test;

public class JsonTest {
    @Test
    public void values() throws Exception {
        assertEquals(Long.valueOf(-12), Json.parse(" -12 "));
        assertEquals(1.5e-3, Json.parse("1.5e-3"));
        assertEquals(1e30, (Double) Json.parse("1000000000000000000000000000000"), 1e15);
        assertEquals(Arrays.asList(true, false, null, ""), Json.parse("[true,false,null,\"\"]"));
        assertEquals(Collections.emptyMap(), Json.object("{}"));
        assertEquals("\"\\/\b\f\n\r\t", Json.parse("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\""));
        assertEquals("🚤好", Json.parse("\"\\ud83d\\udea4\\u597d\""));
    }

    @Test
    public void whatIsNoJsonIsRefused() {
        String[] texts = {
            "", " ", "{", "[1,]", "[1 2]", "{\"a\"}", "{\"a\":1,}", "{a:1}", "'a'", "\"a", "\"\\x\"", "\"\\u12\"", "\"\\u12g4\"",
            "\"\n\"", "01", "+1", "1.", ".5", "1e", "--1", "-", "1e999", "nul", "truex", "1 1", "NaN", "\u00a01", "\"\\u１２３４\"",
        };
        for (String text : texts) {
            try {
                fail(text + " became " + Json.parse(text));
            } catch (Json.Malformed e) {
                assertFalse(e.getMessage().isEmpty());
            }
        }
    }

    @Test
    public void depthIsBounded() throws Exception {
        Json.parse(nested(60));
        try {
            Json.parse(nested(100_000));
            fail();
        } catch (Json.Malformed e) {
            assertEquals("expected at most 64 levels at character 65", e.getMessage());
        }
    }

    private static String nested(int depth) {
        char[] open = new char[depth];
        char[] close = new char[depth];
        Arrays.fill(open, '[');
        Arrays.fill(close, ']');
        return new String(open) + new String(close);
    }

    @Test
    public void whatIsWrittenIsReadAgainAndStaysOnOneLine() throws Exception {
        StringBuilder all = new StringBuilder("🚤");
        for (char c = 0; c < 0x2100; c++) {
            all.append(c);
        }
        Map<String, Object> value = new LinkedHashMap<>();
        value.put("text", all.toString());
        value.put("list", Arrays.asList(1L, 2.5, null, true));
        value.put("empty", Collections.emptyList());
        value.put("none", Collections.emptyMap());
        String line = Json.write(value);
        assertEquals(value, Json.parse(line));
        assertFalse(line.contains("\n") || line.contains("\r"));
    }

    @Test
    public void whatHasNoJsonIsNotWritten() {
        for (Object value : new Object[] {Double.NaN, Double.NEGATIVE_INFINITY, new Object(), 1.5f}) {
            try {
                fail(Json.write(value));
            } catch (IllegalArgumentException e) {
                assertEquals("no JSON for " + value, e.getMessage());
            }
        }
    }

    @Test
    public void halfACharacterIsReplaced() {
        assertEquals("\"\ufffda\ufffd\"", Json.write("\ud83da\udea4"));
    }
}
