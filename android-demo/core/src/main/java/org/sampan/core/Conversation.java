package org.sampan.core;

import java.util.ArrayList;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** A conversation as it is saved. */
public final class Conversation {
    private static final int TITLE = 60;

    public final String id;
    /** Milliseconds since 1970. */
    public final long changed;
    /** File name of the model that answers. */
    public final String model;
    public final List<Message> messages;

    public Conversation(String id, long changed, String model, List<Message> messages) {
        this.id = id;
        this.changed = changed;
        this.model = model;
        this.messages = Collections.unmodifiableList(new ArrayList<>(messages));
    }

    public Conversation with(Message message, String by, long now) {
        List<Message> longer = new ArrayList<>(messages);
        longer.add(message);
        return new Conversation(id, now, by, longer);
    }

    /** Up to the last question. */
    Conversation asked(long now) {
        int count = messages.size();
        while (count > 0 && !messages.get(count - 1).isUser()) {
            count--;
        }
        return new Conversation(id, now, model, messages.subList(0, count));
    }

    /** The first line that the user said, cut between characters; "" where there is none. */
    public String title() {
        for (Message message : messages) {
            String text = message.text.trim();
            if (message.isUser() && !text.isEmpty()) {
                String line = text.split("\\R", 2)[0];
                int count = line.codePointCount(0, line.length());
                return count <= TITLE ? line : line.substring(0, line.offsetByCodePoints(0, TITLE - 1)) + "…";
            }
        }
        return "";
    }

    /** To share: who said what, without thoughts. */
    public String plain(String you, String assistant) {
        StringBuilder out = new StringBuilder();
        for (Message message : messages) {
            out.append(out.length() == 0 ? "" : "\n\n").append(message.isUser() ? you : assistant).append(": ").append(message.said());
        }
        return out.toString();
    }

    String json() {
        List<Object> turns = new ArrayList<>();
        for (Message message : messages) {
            Map<String, Object> turn = new LinkedHashMap<>();
            turn.put("role", message.role);
            turn.put("text", message.text);
            turn.put("speed", message.speed);
            turn.put("reason", message.reason);
            turns.add(turn);
        }
        Map<String, Object> all = new LinkedHashMap<>();
        all.put("version", 1);
        all.put("changed", changed);
        all.put("model", model);
        all.put("messages", turns);
        return Json.write(all);
    }

    static Conversation parse(String id, String text) throws Json.Malformed {
        Map<String, Object> all = Json.object(text);
        Object turns = all.get("messages");
        if (!Long.valueOf(1).equals(all.get("version")) || !(turns instanceof List) || !(all.get("changed") instanceof Long)) {
            throw new Json.Malformed("expected a conversation of version 1");
        }
        List<Message> messages = new ArrayList<>();
        for (Object item : (List<?>) turns) {
            Map<?, ?> turn = item instanceof Map ? (Map<?, ?>) item : Collections.emptyMap();
            Object role = turn.get("role");
            if (!"user".equals(role) && !"assistant".equals(role) || !(turn.get("text") instanceof String)) {
                throw new Json.Malformed("expected a message");
            }
            Object speed = turn.get("speed");
            messages.add(new Message((String) role, (String) turn.get("text"),
                speed instanceof Number ? ((Number) speed).doubleValue() : 0, text(turn.get("reason"))));
        }
        return new Conversation(id, (Long) all.get("changed"), text(all.get("model")), messages);
    }

    private static String text(Object value) {
        return value instanceof String ? (String) value : "";
    }
}
