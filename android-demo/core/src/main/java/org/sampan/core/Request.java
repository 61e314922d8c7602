package org.sampan.core;

import java.text.Normalizer;
import java.util.ArrayList;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** What the app asks of the engine, in the words of ../engine's protocol. */
final class Request {
    /** Tokens of an answer. */
    private static final int ANSWER = 2048;

    private Request() {}

    static Map<String, Object> load(String path, int context) {
        Map<String, Object> request = new LinkedHashMap<>();
        request.put("path", path);
        request.put("context", context);
        request.put("threads", 0);
        return request;
    }

    static Map<String, Object> chat(List<Message> messages, boolean thinks, boolean composed, long seed) {
        Map<String, Object> request = new LinkedHashMap<>();
        request.put("messages", turns(messages, composed));
        request.put("max_tokens", ANSWER);
        request.put("temperature", 0.7);
        request.put("top_p", 0.9);
        request.put("top_k", 40);
        request.put("seed", seed);
        request.put("variables", Collections.singletonMap("enable_thinking", thinks));
        return request;
    }

    static Map<String, Object> stop(long chat) {
        return Collections.<String, Object>singletonMap("target", chat);
    }

    /**
     * A question without an answer is left out: templates want turns that alternate. `composed`: in Unicode's form C, which
     * the engine leaves to the app.
     */
    static List<Object> turns(List<Message> messages, boolean composed) {
        List<Object> turns = new ArrayList<>();
        for (int i = 0; i < messages.size(); i++) {
            Message message = messages.get(i);
            boolean last = i + 1 == messages.size();
            boolean answered = !last && !messages.get(i + 1).isUser() && !messages.get(i + 1).said().isEmpty();
            if (message.isUser() ? last || answered : !message.said().isEmpty()) {
                Map<String, Object> turn = new LinkedHashMap<>();
                turn.put("role", message.role);
                turn.put("content", composed ? Normalizer.normalize(message.said(), Normalizer.Form.NFC) : message.said());
                turns.add(turn);
            }
        }
        return turns;
    }
}
