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
        this.detail = detail;
    }
}
