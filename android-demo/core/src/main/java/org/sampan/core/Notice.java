package org.sampan.core;

/** Something the user must be told. The app has a sentence for each kind, in each language. */
public final class Notice {
    public enum Kind {
        ENGINE_DIED, ENGINE_DIED_LOADING, ENGINE_KEEPS_DYING, ENGINE_NOT_STARTED, ENGINE_TOO_SLOW, ENGINE_PROTOCOL,
        LOAD_FAILED, NO_MEMORY, TEMPLATE, TOO_LONG, CONTEXT_FULL, CUT, FAILED, NOT_SAVED
    }

    public final Kind kind;
    /** What the engine or the system said, for a bug report: not translated. */
    public final String detail;

    Notice(Kind kind, String detail) {
        this.kind = kind;
        this.detail = detail == null ? "" : detail;
    }

    /** Of an engine that ended; `died` where the caller knows more than that it died. */
    static Notice of(Engine.End end, int status, String log, Kind died) {
        String detail = (status > 128 ? "signal " + (status - 128) : "status " + status) + (log.isEmpty() ? "" : "\n" + log);
        switch (end) {
            case NOT_STARTED:
                return new Notice(Kind.ENGINE_NOT_STARTED, log);
            case TOO_SLOW:
                return new Notice(Kind.ENGINE_TOO_SLOW, detail);
            case DIED:
                return new Notice(died, detail);
            default:
                return new Notice(Kind.ENGINE_PROTOCOL, detail);
        }
    }

    /** Of an error event; `other` for the codes that say nothing more. */
    static Notice of(Event error, Kind other) {
        String message = error.text("message");
        switch (error.text("code")) {
            case "memory":
                return new Notice(Kind.NO_MEMORY, message);
            case "template":
                return new Notice(Kind.TEMPLATE, message);
            case "too_long":
                return new Notice(Kind.TOO_LONG, message);
            default:
                return new Notice(other, message);
        }
    }
}
