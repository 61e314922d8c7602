package org.sampan.core;

import java.util.Map;

/** One line of the engine. */
public final class Event {
    public final String name;
    public final long id;
    private final Map<String, Object> members;

    private Event(String name, long id, Map<String, Object> members) {
        this.name = name;
        this.id = id;
        this.members = members;
    }

    static Event of(String line) throws Json.Malformed {
        Map<String, Object> members = Json.object(line);
        Object name = members.get("event");
        Object id = members.get("id");
        if (!(name instanceof String) || !(id instanceof Long)) {
            throw new Json.Malformed("expected \"event\" and an integer \"id\"");
        }
        return new Event((String) name, (Long) id, members);
    }

    /** A text, or "" where the engine sent none. */
    public String text(String key) {
        Object value = members.get(key);
        return value instanceof String ? (String) value : "";
    }

    /** A number, or 0 where the engine sent none. */
    public double number(String key) {
        Object value = members.get(key);
        return value instanceof Number ? ((Number) value).doubleValue() : 0;
    }

    /** How many a second, of a count and its milliseconds, or 0 where they cannot be true. */
    public double rate(String count, String ms) {
        double rate = number(count) * 1000 / number(ms);
        return rate > 0 && rate < 1e9 ? rate : 0;
    }

    /** A switch, off where the engine sent none. */
    public boolean flag(String key) {
        return Boolean.TRUE.equals(members.get(key));
    }
}
