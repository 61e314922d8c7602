package org.sampan.core;

import java.util.Arrays;
import java.util.List;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;

/** tests/android_engine.py, and what it said. */
final class StandIn implements Engine.Listener {
    final BlockingQueue<Object> heard = new LinkedBlockingQueue<>();

    /** System properties: the Python interpreter and the script. */
    static List<String> command(String mode) {
        return Arrays.asList(System.getProperty("sampan.python"), System.getProperty("sampan.engine"), mode);
    }

    Engine start(String mode, long patience) {
        return Engine.start(command(mode), patience, this);
    }

    @Override
    public void event(Event event) {
        heard.add(event);
    }

    @Override
    public void ended(Engine.End end, int status, String log) {
        heard.add(new Ended(end, status, log));
    }

    static final class Ended {
        final Engine.End end;
        final int status;
        final String log;

        Ended(Engine.End end, int status, String log) {
            this.end = end;
            this.status = status;
            this.log = log;
        }
    }

    Object next() throws InterruptedException {
        Object next = heard.poll(20, TimeUnit.SECONDS);
        if (next == null) {
            throw new AssertionError("the engine said nothing for 20 s");
        }
        return next;
    }

    /** The next event that has this name; what comes before it is passed over. */
    Event event(String name) throws InterruptedException {
        for (Object next = next(); ; next = next()) {
            if (next instanceof Event && ((Event) next).name.equals(name)) {
                return (Event) next;
            }
            if (next instanceof Ended) {
                throw new AssertionError("ended before " + name + ": " + ((Ended) next).end + " " + ((Ended) next).log);
            }
        }
    }

    Ended end() throws InterruptedException {
        Object next = next();
        while (!(next instanceof Ended)) {
            next = next();
        }
        return (Ended) next;
    }
}
