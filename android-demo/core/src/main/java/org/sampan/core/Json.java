package org.sampan.core;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** JSON (RFC 8259) as Map, List, String, Long, Double, Boolean and null. Strict, and bounded in depth. */
public final class Json {
    private static final int DEPTH = 64;
    private static final String SPACE = " \t\r\n";

    private final String text;
    private int at;

    private Json(String text) {
        this.text = text;
    }

    /** What is wrong with a text that is not JSON, and where. */
    public static final class Malformed extends Exception {
        Malformed(String message) {
            super(message);
        }
    }

    public static Object parse(String text) throws Malformed {
        Json json = new Json(text);
        Object value = json.value(0);
        if (json.peek() != 0) {
            throw json.wrong("the end");
        }
        return value;
    }

    /** An object; any other value is Malformed. */
    @SuppressWarnings("unchecked")
    public static Map<String, Object> object(String text) throws Malformed {
        Object value = parse(text);
        if (!(value instanceof Map)) {
            throw new Malformed("expected an object");
        }
        return (Map<String, Object>) value;
    }

    /** A text on one line. Numbers must be finite. */
    public static String write(Object value) {
        StringBuilder out = new StringBuilder();
        write(value, out);
        return out.toString();
    }

    private static void write(Object value, StringBuilder out) {
        if (value instanceof Map) {
            String comma = "{";
            for (Map.Entry<?, ?> entry : ((Map<?, ?>) value).entrySet()) {
                out.append(comma);
                quote((String) entry.getKey(), out);
                out.append(':');
                write(entry.getValue(), out);
                comma = ",";
            }
            out.append(comma.equals("{") ? "{}" : "}");
        } else if (value instanceof List) {
            String comma = "[";
            for (Object item : (List<?>) value) {
                out.append(comma);
                write(item, out);
                comma = ",";
            }
            out.append(comma.equals("[") ? "[]" : "]");
        } else if (value instanceof String) {
            quote((String) value, out);
        } else if (value == null || value instanceof Boolean || value instanceof Long || value instanceof Integer) {
            out.append(value);
        } else if (value instanceof Double && !((Double) value).isNaN() && !((Double) value).isInfinite()) {
            out.append(value);
        } else {
            throw new IllegalArgumentException("no JSON for " + value);
        }
    }

    /** A surrogate without its partner has no UTF-8: it becomes U+FFFD. */
    private static void quote(String text, StringBuilder out) {
        out.append('"');
        for (int i = 0; i < text.length(); i++) {
            char c = text.charAt(i);
            boolean pair = Character.isHighSurrogate(c) && i + 1 < text.length() && Character.isLowSurrogate(text.charAt(i + 1));
            if (c == '"' || c == '\\') {
                out.append('\\').append(c);
            } else if (c < 0x20) {
                out.append(String.format("\\u%04x", (int) c));
            } else if (pair) {
                out.append(c).append(text.charAt(++i));
            } else {
                out.append(Character.isSurrogate(c) ? '\ufffd' : c);
            }
        }
        out.append('"');
    }

    private Malformed wrong(String expected) {
        return new Malformed("expected " + expected + " at character " + at);
    }

    /** The next character that is no space, or 0 at the end. */
    private char peek() {
        while (at < text.length() && SPACE.indexOf(text.charAt(at)) >= 0) {
            at++;
        }
        return at < text.length() ? text.charAt(at) : 0;
    }

    private boolean take(char c) {
        if (peek() != c) {
            return false;
        }
        at++;
        return true;
    }

    private void expect(char c) throws Malformed {
        if (!take(c)) {
            throw wrong("'" + c + "'");
        }
    }

    private Object value(int depth) throws Malformed {
        if (depth > DEPTH) {
            throw wrong("at most " + DEPTH + " levels");
        }
        switch (peek()) {
            case '{':
                return members(depth);
            case '[':
                return items(depth);
            case '"':
                return string();
            case 't':
                return word("true", Boolean.TRUE);
            case 'f':
                return word("false", Boolean.FALSE);
            case 'n':
                return word("null", null);
            default:
                return number();
        }
    }

    private Map<String, Object> members(int depth) throws Malformed {
        Map<String, Object> members = new LinkedHashMap<>();
        at++;
        if (take('}')) {
            return members;
        }
        do {
            if (peek() != '"') {
                throw wrong("a key");
            }
            String key = string();
            expect(':');
            members.put(key, value(depth + 1));
        } while (take(','));
        expect('}');
        return members;
    }

    private List<Object> items(int depth) throws Malformed {
        List<Object> items = new ArrayList<>();
        at++;
        if (take(']')) {
            return items;
        }
        do {
            items.add(value(depth + 1));
        } while (take(','));
        expect(']');
        return items;
    }

    private Object word(String word, Object value) throws Malformed {
        if (!text.startsWith(word, at)) {
            throw wrong("a value");
        }
        at += word.length();
        return value;
    }

    private String string() throws Malformed {
        StringBuilder out = new StringBuilder();
        at++;
        while (at < text.length()) {
            char c = text.charAt(at++);
            if (c == '"') {
                return out.toString();
            }
            if (c < 0x20) {
                at--;
                throw wrong("no control character");
            }
            out.append(c == '\\' ? escaped() : c);
        }
        throw wrong("'\"'");
    }

    private char escaped() throws Malformed {
        char c = at < text.length() ? text.charAt(at++) : 0;
        int simple = "\"\\/bfnrt".indexOf(c);
        if (simple >= 0) {
            return "\"\\/\b\f\n\r\t".charAt(simple);
        }
        if (c != 'u' || at + 4 > text.length()) {
            throw wrong("an escape");
        }
        int code = 0;
        for (int i = 0; i < 4; i++) {
            char hex = text.charAt(at++);
            int digit = hex < 0x80 ? Character.digit(hex, 16) : -1;
            if (digit < 0) {
                throw wrong("four hex digits");
            }
            code = code * 16 + digit;
        }
        return (char) code;
    }

    private Object number() throws Malformed {
        int start = at;
        while (at < text.length() && "+-.0123456789eE".indexOf(text.charAt(at)) >= 0) {
            at++;
        }
        String word = text.substring(start, at);
        if (!word.matches("-?(0|[1-9][0-9]*)(\\.[0-9]+)?([eE][+-]?[0-9]+)?")) {
            at = start;
            throw wrong("a value");
        }
        if (word.matches("-?[0-9]{1,18}")) {
            return Long.valueOf(word);
        }
        double value = Double.parseDouble(word);
        if (Double.isInfinite(value)) {
            throw wrong("a number that a double can hold");
        }
        return value;
    }
}
