package org.sampan.core;

/** One turn: "user" or "assistant", with the model's text as it came, its thoughts in it. */
public final class Message {
    public final String role;
    public final String text;
    /** Tokens a second, or 0 where that is not known. */
    public final double speed;
    /** Why the answer ends: "stop", "length", "context", "stopped", "died", "error"; "" for a user's turn. */
    public final String reason;

    public Message(String role, String text, double speed, String reason) {
        this.role = role;
        this.text = text;
        this.speed = speed;
        this.reason = reason;
    }

    public static Message user(String text) {
        return new Message("user", text, 0, "");
    }

    public boolean isUser() {
        return role.equals("user");
    }

    /** What is shown, copied and sent to the model again: without the thoughts. */
    public String said() {
        return isUser() ? text : Thinking.of(text, false).answer;
    }
}
