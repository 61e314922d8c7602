package org.sampan.core;

import java.io.File;
import java.io.IOException;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.concurrent.Executor;

/**
 * The state of the chat screen: a conversation, a model and the engine that answers. Everything happens on `home`, one
 * thread; the engine's threads only post there. It outlives the screen.
 */
public final class Chat {
    /** NONE: no model. LOADING, READY, ANSWERING. ASLEEP: the engine ended while nobody looked. BROKEN: see the notice. */
    public enum State { NONE, LOADING, READY, ANSWERING, ASLEEP, BROKEN }

    public interface Launcher {
        Engine launch(Engine.Listener listener);
    }

    /** A second death in so many milliseconds is not answered by another start. */
    private static final long PAUSE = 60_000;
    private static final int ANSWER = 2048;

    private final Store store;
    private final Executor home;
    private final Launcher launcher;
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
    private long chatId;
    private long died;
    private Conversation conversation;
    private final StringBuilder partial = new StringBuilder();
    private double speed;
    private long memory;

    public Chat(Store store, Executor home, Launcher launcher) {
        this.store = store;
        this.home = home;
        this.launcher = launcher;
        this.conversation = store.fresh("", System.currentTimeMillis());
    }

    /** Called after each change; null when there is no screen. */
    public void watch(Runnable changed) {
        view = changed == null ? () -> { } : changed;
    }

    public State state() {
        return state;
    }

    /** The last thing to be told, or null. It stays until it is dismissed. */
    public Notice notice() {
        return notice;
    }

    public void dismiss() {
        notice = null;
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

    public boolean stopping() {
        return stopping;
    }

    public boolean thinks() {
        return thinks;
    }

    /** Whether the model may think first, where its template has a switch for that. */
    public void setThinks(boolean on) {
        thinks = on;
        view.run();
    }

    /** Loads a model that was checked, in an engine of its own. */
    public void load(File file, int tokens) {
        interrupt("stopped");
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
        int count = conversation.messages.size();
        while (count > 0 && !conversation.messages.get(count - 1).isUser()) {
            count--;
        }
        if (state == State.READY && count > 0) {
            keep(conversation.cut(count, System.currentTimeMillis()));
            answer();
        }
    }

    private void answer() {
        Map<String, Object> request = new LinkedHashMap<>();
        request.put("messages", conversation.request());
        request.put("max_tokens", ANSWER);
        request.put("temperature", 0.7);
        request.put("top_p", 0.9);
        request.put("top_k", 40);
        request.put("seed", System.nanoTime() & 0x7fffffff);
        request.put("variables", Collections.singletonMap("enable_thinking", thinks));
        try {
            chatId = engine.send("chat", request);
        } catch (IllegalArgumentException e) {
            tell(Notice.Kind.TOO_LONG, e.getMessage());
            view.run();
            return;
        }
        partial.setLength(0);
        stopping = false;
        notice = null;
        state = State.ANSWERING;
        view.run();
    }

    public void stop() {
        if (state == State.ANSWERING && !stopping) {
            stopping = true;
            engine.send("stop", Collections.singletonMap("target", chatId));
            view.run();
        }
    }

    /** A new, empty conversation. An answer that is being written is stopped and kept in the old one. */
    public void fresh() {
        leave(store.fresh(model == null ? "" : model.getName(), System.currentTimeMillis()));
    }

    public void open(Conversation saved) {
        leave(saved);
    }

    private void leave(Conversation next) {
        interrupt("stopped");
        conversation = next;
        speed = 0;
        notice = null;
        view.run();
    }

    public void delete(String id) {
        try {
            store.delete(id);
        } catch (IOException e) {
            tell(Notice.Kind.NOT_SAVED, e.getMessage());
        }
        if (id.equals(conversation.id)) {
            interrupt("stopped");
            partial.setLength(0);
            conversation = store.fresh(conversation.model, System.currentTimeMillis());
            try {
                store.delete(id);
            } catch (IOException e) {
                tell(Notice.Kind.NOT_SAVED, e.getMessage());
            }
        }
        view.run();
    }

    /** Before the process may be ended: writes the answer so far beside its question. */
    public void save() {
        write(partial.length() == 0 ? conversation
            : conversation.with(new Message("assistant", partial.toString(), 0, "died"), conversation.model, System.currentTimeMillis()));
    }

    /** Ends the engine. */
    public void close() {
        interrupt("stopped");
        drop();
        state = State.NONE;
    }

    private void interrupt(String reason) {
        if (state == State.ANSWERING) {
            engine.send("stop", Collections.singletonMap("target", chatId));
            finish(reason, 0);
            state = State.READY;
        }
    }

    private void drop() {
        Engine old = engine;
        engine = null;
        if (old != null) {
            old.close();
        }
    }

    private void begin() {
        state = State.LOADING;
        progress = 0;
        memory = 0;
        Engine[] mine = new Engine[1];
        mine[0] = launcher.launch(new Engine.Listener() {
            @Override
            public void event(Event event) {
                home.execute(() -> {
                    if (engine != null && engine == mine[0]) {
                        take(event);
                        view.run();
                    }
                });
            }

            @Override
            public void ended(Engine.End end, int status, String log) {
                home.execute(() -> {
                    if (engine != null && engine == mine[0]) {
                        engine = null;
                        lost(end, status, log);
                        view.run();
                    }
                });
            }
        });
        engine = mine[0];
        view.run();
    }

    private void take(Event event) {
        switch (event.name) {
            case "ready":
                Map<String, Object> request = new LinkedHashMap<>();
                request.put("path", model.getPath());
                request.put("context", context);
                request.put("threads", 0);
                loadId = engine.send("load", request);
                break;
            case "progress":
                progress = event.number("value");
                break;
            case "loaded":
                state = State.READY;
                modelName = event.text("name").isEmpty() ? model.getName() : event.text("name");
                engine.send("stats", Collections.<String, Object>emptyMap());
                break;
            case "text":
                if (state == State.ANSWERING && event.id == chatId) {
                    partial.append(event.text("text"));
                }
                break;
            case "done":
                if (state == State.ANSWERING && event.id == chatId) {
                    double ms = event.number("decode_ms");
                    speed = ms > 0 ? event.number("tokens") * 1000 / ms : 0;
                    finish(event.text("reason"), speed);
                    state = State.READY;
                    engine.send("stats", Collections.<String, Object>emptyMap());
                    if (event.text("reason").equals("context")) {
                        tell(Notice.Kind.CONTEXT_FULL, "");
                    } else if (event.text("reason").equals("length")) {
                        tell(Notice.Kind.CUT, "");
                    }
                }
                break;
            case "stats":
                memory = (long) event.number("rss_bytes");
                break;
            case "error":
                failed(event);
                break;
            default: // what a later engine may add, such as "prompt" now, is not needed here
        }
    }

    private void failed(Event event) {
        String message = event.text("message");
        String code = event.text("code");
        if (state == State.LOADING && event.id == loadId) {
            tell(code.equals("memory") ? Notice.Kind.NO_MEMORY : Notice.Kind.LOAD_FAILED, message);
            state = State.BROKEN;
            drop();
        } else if (state == State.ANSWERING && event.id == chatId) {
            finish("error", 0);
            state = State.READY;
            tell(code.equals("too_long") ? Notice.Kind.TOO_LONG : code.equals("template") ? Notice.Kind.TEMPLATE
                : code.equals("memory") ? Notice.Kind.NO_MEMORY : Notice.Kind.FAILED, message);
        }
    }

    private void lost(Engine.End end, int status, String log) {
        State before = state;
        String detail = (status > 128 ? "signal " + (status - 128) : "status " + status) + (log.isEmpty() ? "" : "\n" + log);
        if (state == State.ANSWERING) {
            finish("died", 0);
        }
        state = State.BROKEN;
        long now = System.nanoTime() / 1_000_000;
        boolean twice = died != 0 && now - died < PAUSE;
        if (end == Engine.End.NOT_STARTED) {
            tell(Notice.Kind.ENGINE_NOT_STARTED, log);
        } else if (end == Engine.End.TOO_SLOW) {
            tell(Notice.Kind.ENGINE_TOO_SLOW, detail);
        } else if (end != Engine.End.DIED) {
            tell(Notice.Kind.ENGINE_PROTOCOL, detail);
        } else if (twice) {
            tell(Notice.Kind.ENGINE_KEEPS_DYING, detail);
        } else if (before == State.LOADING) {
            tell(Notice.Kind.ENGINE_DIED_LOADING, detail);
        } else {
            died = now;
            tell(Notice.Kind.ENGINE_DIED, detail);
            state = State.ASLEEP;
            setVisible(visible);
        }
    }

    private void finish(String reason, double measured) {
        Message answer = new Message("assistant", partial.toString(), measured, reason);
        partial.setLength(0);
        stopping = false;
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
            tell(Notice.Kind.NOT_SAVED, e.getMessage());
        }
    }

    private void tell(Notice.Kind kind, String detail) {
        notice = new Notice(kind, detail == null ? "" : detail);
    }
}
