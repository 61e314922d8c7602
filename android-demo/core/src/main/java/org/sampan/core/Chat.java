package org.sampan.core;

import java.io.File;
import java.io.IOException;
import java.util.Collections;
import java.util.concurrent.Executor;

/**
 * The state of the chat screen: a conversation, a model and the engine that answers. Everything happens on `home`, one
 * thread; the engine's threads only post there. It outlives the screen.
 */
public final class Chat {
    /** NONE: no model. LOADING, READY, ANSWERING. ASLEEP: the engine ended while nobody looked. BROKEN: see the notice. */
    public enum State { NONE, LOADING, READY, ANSWERING, ASLEEP, BROKEN }

    /** A second death in so many nanoseconds is not answered by another start. */
    private static final long PAUSE = 60_000_000_000L;

    private final Store store;
    private final Executor home;
    private final Engine.Launcher launcher;
    private Runnable view = () -> { };

    private State state = State.NONE;
    private Engine engine;
    private Notice notice;
    private File model;
    private int context;
    private String modelName = "";
    private double progress;
    private boolean visible;
    private boolean stopping;
    private boolean thinks = true;
    private long loadId;
    /** Whether the model's tokenizer wants text in Unicode's form C. */
    private boolean composed;
    /** The chat whose answer is shown, and the one that the engine is at; 0 for none. */
    private long chatId;
    private long busy;
    private long died;
    private Conversation conversation;
    private final StringBuilder partial = new StringBuilder();
    private double speed;
    private long memory;

    public Chat(Store store, Executor home, Engine.Launcher launcher) {
        this.store = store;
        this.home = home;
        this.launcher = launcher;
        conversation = store.fresh("", System.currentTimeMillis());
    }

    /** Called after each change. */
    public void watch(Runnable changed) {
        view = changed;
    }

    public State state() {
        return state;
    }

    /** The last thing to be told, or null. It stays until it is dismissed; what is BROKEN stays until it works again. */
    public Notice notice() {
        return notice;
    }

    public void dismiss() {
        notice = state == State.BROKEN ? notice : null;
        view.run();
    }

    public Conversation conversation() {
        return conversation;
    }

    /** The answer that is being written. */
    public String partial() {
        return partial.toString();
    }

    public File model() {
        return model;
    }

    public String modelName() {
        return modelName;
    }

    /** Of loading, 0 to 1. */
    public double progress() {
        return progress;
    }

    /** Tokens a second of the last answer, or 0. */
    public double speed() {
        return speed;
    }

    /** Bytes that the engine held after the last answer, or 0. */
    public long memory() {
        return memory;
    }

    /** Whether a stop was asked for that the engine did not follow yet. */
    public boolean stopping() {
        return stopping;
    }

    /** Whether the model may think first, where its template has a switch for that. */
    public boolean thinks() {
        return thinks;
    }

    public void setThinks(boolean on) {
        thinks = on;
        view.run();
    }

    /** Loads a model that was checked, in an engine of its own. */
    public void load(File file, int tokens) {
        interrupt();
        drop();
        model = file;
        modelName = file.getName();
        context = tokens;
        died = 0;
        notice = null;
        begin();
    }

    /** Starts again after BROKEN or ASLEEP. */
    public void retry() {
        if (model != null && (state == State.BROKEN || state == State.ASLEEP)) {
            notice = null;
            begin();
        }
    }

    /** Told by the screen. An engine that died unseen is started when the user looks again. */
    public void setVisible(boolean shown) {
        visible = shown;
        if (shown && state == State.ASLEEP) {
            begin();
        }
    }

    /** Asks; only in READY. */
    public void ask(String text) {
        if (state != State.READY || text.trim().isEmpty()) {
            return;
        }
        keep(conversation.with(Message.user(text.trim()), model.getName(), System.currentTimeMillis()));
        answer();
    }

    /** Another answer to the last question; only in READY. */
    public void again() {
        Conversation asked = conversation.asked(System.currentTimeMillis());
        if (state == State.READY && !asked.messages.isEmpty()) {
            keep(asked);
            answer();
        }
    }

    /** An old answer may still be on its way to its end in the engine, which has one chat at a time: then this one waits. */
    private void answer() {
        partial.setLength(0);
        stopping = false;
        notice = null;
        chatId = 0;
        state = State.ANSWERING;
        if (busy == 0) {
            submit();
        }
        view.run();
    }

    private void submit() {
        try {
            chatId = engine.send("chat", Request.chat(conversation.messages, thinks, composed, System.nanoTime() & 0x7fffffff));
            busy = chatId;
        } catch (IllegalArgumentException e) {
            finish("error", 0);
            notice = new Notice(Notice.Kind.TOO_LONG, e.getMessage());
        }
    }

    public void stop() {
        if (state == State.ANSWERING && chatId == 0) {
            finish("stopped", 0);
        } else if (state == State.ANSWERING) {
            release();
            stopping = true;
        }
        view.run();
    }

    /** A new, empty conversation. An answer that is being written is stopped and kept in the old one. */
    public void fresh() {
        leave(store.fresh(model == null ? "" : model.getName(), System.currentTimeMillis()));
    }

    /** A saved conversation; the one that is open stays as it is. */
    public void open(Conversation saved) {
        if (!saved.id.equals(conversation.id)) {
            leave(saved);
        }
    }

    private void leave(Conversation next) {
        interrupt();
        conversation = next;
        speed = 0;
        dismiss();
    }

    public void delete(String id) {
        if (id.equals(conversation.id)) {
            if (state == State.ANSWERING) {
                release();
                chatId = 0;
                partial.setLength(0);
                state = State.READY;
            }
            conversation = store.fresh(conversation.model, System.currentTimeMillis());
        }
        try {
            store.delete(id);
        } catch (IOException e) {
            notice = new Notice(Notice.Kind.NOT_SAVED, e.getMessage());
        }
        view.run();
    }

    /** Before the process may be ended: writes the answer so far beside its question. */
    public void save() {
        write(partial.length() == 0 ? conversation
            : conversation.with(new Message("assistant", partial.toString(), 0, "died"), conversation.model, System.currentTimeMillis()));
    }

    /** Leaves an answer: the engine stops it, and what there is of it is kept. */
    private void interrupt() {
        if (state == State.ANSWERING) {
            release();
            finish("stopped", 0);
        }
    }

    private void release() {
        if (chatId != 0 && !stopping) {
            engine.send("stop", Request.stop(chatId));
        }
    }

    private void drop() {
        if (engine != null) {
            engine.close();
            engine = null;
        }
    }

    private void begin() {
        state = State.LOADING;
        progress = 0;
        memory = 0;
        busy = 0;
        chatId = 0;
        Engine[] mine = new Engine[1];
        mine[0] = launcher.launch(new Engine.Listener() {
            @Override
            public void event(Event event) {
                post(mine, () -> take(event));
            }

            @Override
            public void ended(Engine.End end, int status, String log) {
                post(mine, () -> lost(end, status, log));
            }
        });
        engine = mine[0];
        view.run();
    }

    /** What an engine that was let go still says is not heard. */
    private void post(Engine[] mine, Runnable heard) {
        home.execute(() -> {
            if (engine != null && engine == mine[0]) {
                heard.run();
                view.run();
            }
        });
    }

    private void take(Event event) {
        switch (event.name) {
            case "ready":
                loadId = engine.send("load", Request.load(model.getPath(), context));
                break;
            case "progress":
                progress = event.number("value");
                break;
            case "loaded":
                if (state == State.LOADING && event.id == loadId) {
                    state = State.READY;
                    composed = event.flag("nfc");
                    modelName = event.text("name").isEmpty() ? modelName : event.text("name");
                    engine.send("stats", Collections.<String, Object>emptyMap());
                }
                break;
            case "text":
                if (event.id == chatId) {
                    partial.append(event.text("text"));
                }
                break;
            case "done":
                done(event);
                break;
            case "stats":
                memory = (long) event.number("rss_bytes");
                break;
            case "error":
                failed(event);
                break;
            default: // nothing here needs the others, such as "prompt"
        }
    }

    private void done(Event event) {
        String reason = event.text("reason");
        if (event.id == chatId) {
            speed = event.rate("tokens", "decode_ms");
            finish(reason, speed);
            engine.send("stats", Collections.<String, Object>emptyMap());
            if (reason.equals("context") || reason.equals("length")) {
                notice = new Notice(reason.equals("context") ? Notice.Kind.CONTEXT_FULL : Notice.Kind.CUT, "");
            }
        }
        next(event);
    }

    private void failed(Event event) {
        if (state == State.LOADING && event.id == loadId) {
            notice = Notice.of(event, Notice.Kind.LOAD_FAILED);
            state = State.BROKEN;
            drop();
        } else if (event.id == chatId) {
            finish("error", 0);
            notice = Notice.of(event, Notice.Kind.FAILED);
        }
        next(event);
    }

    /** The engine is free again: the question that waited is asked. */
    private void next(Event event) {
        busy = event.id == busy ? 0 : busy;
        if (busy == 0 && state == State.ANSWERING && chatId == 0) {
            submit();
        }
    }

    private void lost(Engine.End end, int status, String log) {
        State before = state;
        engine = null;
        boolean twice = died != 0 && System.nanoTime() - died < PAUSE;
        if (state == State.ANSWERING) {
            finish("died", 0);
        }
        state = State.BROKEN;
        notice = Notice.of(end, status, log, twice ? Notice.Kind.ENGINE_KEEPS_DYING
            : before == State.LOADING ? Notice.Kind.ENGINE_DIED_LOADING : Notice.Kind.ENGINE_DIED);
        if (notice.kind == Notice.Kind.ENGINE_DIED) {
            died = System.nanoTime();
            state = State.ASLEEP;
            setVisible(visible);
        }
    }

    private void finish(String reason, double measured) {
        Message answer = new Message("assistant", partial.toString(), measured, reason);
        partial.setLength(0);
        stopping = false;
        chatId = 0;
        state = State.READY;
        keep(conversation.with(answer, model.getName(), System.currentTimeMillis()));
    }

    private void keep(Conversation next) {
        conversation = next;
        write(next);
    }

    private void write(Conversation next) {
        try {
            store.save(next);
        } catch (IOException e) {
            notice = new Notice(Notice.Kind.NOT_SAVED, e.getMessage());
        }
    }
}
