package org.sampan.core;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicLong;

/**
 * The engine's process and the lines to and from it: protocol 1 of ../engine. Never blocks the caller; the listener is
 * called on threads of its own. After ended() nothing follows.
 */
public final class Engine {
    public static final int PROTOCOL = 1;
    /** Bytes of a line, without its end. */
    public static final int LINE = 1 << 20;
    private static final int LOG = 4096;

    /** Why an engine ended that was not asked to. */
    public enum End { CLOSED, NOT_STARTED, TOO_SLOW, WRONG_PROTOCOL, MALFORMED, DIED }

    public interface Listener {
        void event(Event event);

        /** `status`: what the process ended with, 128 + signal where a signal ended it, or -1. `log`: the end of its stderr. */
        void ended(End end, int status, String log);
    }

    public interface Launcher {
        Engine launch(Listener listener);
    }

    private final Listener listener;
    private final AtomicLong ids = new AtomicLong();
    private final AtomicBoolean ended = new AtomicBoolean();
    private final ExecutorService writer = Executors.newSingleThreadExecutor(Engine::daemon);
    private final ScheduledExecutorService clock = Executors.newSingleThreadScheduledExecutor(Engine::daemon);
    private final ByteArrayOutputStream log = new ByteArrayOutputStream();
    private Process process;
    private volatile boolean ready;
    private volatile End reason = End.DIED;

    private Engine(Listener listener) {
        this.listener = listener;
    }

    private static Thread daemon(Runnable work) {
        Thread thread = new Thread(work, "engine");
        thread.setDaemon(true);
        return thread;
    }

    /**
     * Starts `command`, which ends with the thread that calls this: it asks the kernel for that. An engine that is not ready after
     * `patience` milliseconds is ended.
     */
    public static Engine start(List<String> command, long patience, Listener listener) {
        Engine engine = new Engine(listener);
        try {
            engine.process = new ProcessBuilder(command).start();
        } catch (IOException e) {
            engine.writer.shutdown();
            engine.clock.shutdown();
            daemon(() -> engine.end(End.NOT_STARTED, -1, String.valueOf(e.getMessage()))).start();
            return engine;
        }
        daemon(engine::listen).start();
        engine.clock.schedule(() -> {
            if (!engine.ready) {
                engine.kill(End.TOO_SLOW);
            }
        }, patience, TimeUnit.MILLISECONDS);
        return engine;
    }

    /** Sends a request and returns its id. A line over the limit is not sent: IllegalArgumentException. */
    public long send(String op, Map<String, ?> members) {
        long id = ids.incrementAndGet();
        Map<String, Object> request = new LinkedHashMap<>();
        request.put("op", op);
        request.put("id", id);
        request.putAll(members);
        byte[] line = (Json.write(request) + "\n").getBytes(StandardCharsets.UTF_8);
        if (line.length > LINE + 1) {
            throw new IllegalArgumentException("a request of " + line.length + " bytes, over the limit of " + LINE);
        }
        try {
            writer.execute(() -> write(line));
        } catch (RejectedExecutionException e) {
            // it ended a moment ago, and the listener hears of that
        }
        return id;
    }

    /** Ends the process; ended(CLOSED) follows. */
    public void close() {
        kill(End.CLOSED);
    }

    private void write(byte[] line) {
        try {
            OutputStream out = process.getOutputStream();
            out.write(line);
            out.flush();
        } catch (IOException e) {
            // a closed pipe: the process ended, which listen() notices
        }
    }

    private synchronized void kill(End why) {
        if (process != null && !ended.get()) {
            if (reason == End.DIED) {
                reason = why;
            }
            process.destroyForcibly();
        }
    }

    private void end(End why, int status, String tail) {
        if (ended.compareAndSet(false, true)) {
            listener.ended(why, status, tail);
        }
    }

    private void listen() {
        Thread errors = daemon(this::drain);
        errors.start();
        try {
            read(process.getInputStream());
        } catch (IOException e) {
            // closed under us by kill()
        }
        writer.shutdown();
        clock.shutdownNow();
        int status = -1;
        try {
            if (!process.waitFor(2, TimeUnit.SECONDS)) {
                process.destroyForcibly();
            }
            status = process.waitFor();
            errors.join(1000);
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        }
        String tail;
        synchronized (log) {
            tail = new String(log.toByteArray(), StandardCharsets.UTF_8);
        }
        end(reason, status, tail);
    }

    private void read(InputStream in) throws IOException {
        ByteArrayOutputStream line = new ByteArrayOutputStream();
        byte[] chunk = new byte[8192];
        for (int n; (n = in.read(chunk)) >= 0; ) {
            int start = 0;
            for (int i = 0; i < n; i++) {
                if (chunk[i] == '\n') {
                    line.write(chunk, start, i - start);
                    start = i + 1;
                    if (line.size() > LINE || !take(line.toByteArray())) {
                        kill(ready || line.size() > LINE ? End.MALFORMED : End.WRONG_PROTOCOL);
                        return;
                    }
                    line.reset();
                }
            }
            line.write(chunk, start, n - start);
            if (line.size() > LINE) {
                kill(End.MALFORMED);
                return;
            }
        }
    }

    /** Whether the line was one of the protocol. */
    private boolean take(byte[] line) {
        Event event;
        try {
            event = Event.of(StandardCharsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(line)).toString());
        } catch (CharacterCodingException | Json.Malformed e) {
            return false;
        }
        boolean first = !ready;
        if (first != event.name.equals("ready") || first && event.number("protocol") != PROTOCOL) {
            return false;
        }
        ready = true;
        if (reason == End.DIED && (first || event.id != 0)) { // 0 is of no request
            listener.event(event);
        }
        return true;
    }

    /** Keeps the end of stderr: a full pipe would stop the engine. */
    private void drain() {
        byte[] chunk = new byte[1024];
        try (InputStream in = process.getErrorStream()) {
            for (int n; (n = in.read(chunk)) >= 0; ) {
                synchronized (log) {
                    log.write(chunk, 0, n);
                    if (log.size() > 4 * LOG) {
                        byte[] all = log.toByteArray();
                        log.reset();
                        log.write(all, all.length - LOG, LOG);
                    }
                }
            }
        } catch (IOException e) {
            // the process ended
        }
    }
}
