package org.sampan.demo;

import android.app.ActivityManager;
import android.app.Application;
import android.content.SharedPreferences;
import android.os.Handler;
import android.os.Looper;
import java.io.File;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.util.Collections;
import java.util.Set;
import org.sampan.core.Chat;
import org.sampan.core.Conversation;
import org.sampan.core.Cpu;
import org.sampan.core.Engine;
import org.sampan.core.Fit;
import org.sampan.core.Gguf;
import org.sampan.core.Store;

/** What outlives the screens: the chat with its engine, the models, and what to open again after the process died. */
public final class App extends Application {
    private static final long PATIENCE = 20_000;
    private static final String CONVERSATION = "conversation";
    private static final String MODEL = "model";
    private static final String LOADING = "loading";
    private static final String THINKS = "thinks";

    private final Handler main = new Handler(Looper.getMainLooper());
    private Store store;
    private Chat chat;
    private Models models;
    private Set<String> features;
    private boolean shown;

    @Override
    public void onCreate() {
        super.onCreate();
        store = new Store(new File(getFilesDir(), "conversations"));
        models = new Models(this, main);
        chat = new Chat(store, main::post, this::launch);
        features = features();
        SharedPreferences kept = getSharedPreferences("state", MODE_PRIVATE);
        chat.setThinks(kept.getBoolean(THINKS, true));
        Conversation last = store.open(kept.getString(CONVERSATION, ""));
        if (last != null) {
            chat.open(last);
        }
    }

    static App of(android.content.Context context) {
        return (App) context.getApplicationContext();
    }

    /** Whether the chat is shown for the first time since the process started. */
    boolean first() {
        boolean first = !shown;
        shown = true;
        return first;
    }

    Chat chat() {
        return chat;
    }

    Store store() {
        return store;
    }

    Models models() {
        return models;
    }

    private Set<String> features() {
        try {
            return Cpu.features(new String(Files.readAllBytes(new File("/proc/cpuinfo").toPath()), StandardCharsets.UTF_8));
        } catch (IOException e) {
            return Collections.emptySet();
        }
    }

    private Engine launch(Engine.Listener listener) {
        String build = Cpu.build(features);
        File engine = new File(getApplicationInfo().nativeLibraryDir, build == null ? "none" : build);
        return Engine.start(Collections.singletonList(engine.getPath()), PATIENCE, listener);
    }

    /** What the processor lacks, or "" where an engine runs on it. */
    String lacks() {
        return Cpu.build(features) != null ? "" : String.join(", ", Cpu.missing(features));
    }

    Fit fit(Gguf model) {
        ActivityManager.MemoryInfo memory = new ActivityManager.MemoryInfo();
        getSystemService(ActivityManager.class).getMemoryInfo(memory);
        return Fit.of(model, memory.totalMem, memory.availMem);
    }

    /** Loads a checked model, and notes that it does until it has. */
    void load(File file, int context) {
        getSharedPreferences("state", MODE_PRIVATE).edit().putString(MODEL, file.getPath()).putBoolean(LOADING, true).commit();
        chat.load(file, context);
    }

    /** The model of the last time, or null. */
    File lastModel() {
        String path = getSharedPreferences("state", MODE_PRIVATE).getString(MODEL, null);
        return path == null ? null : new File(path);
    }

    /** Whether the last load neither ended nor failed: perhaps it took the whole app with it. */
    boolean lastLoadUnfinished() {
        return getSharedPreferences("state", MODE_PRIVATE).getBoolean(LOADING, false);
    }

    /** Told when a load may have ended. */
    void settled() {
        if (chat.state() != Chat.State.LOADING && lastLoadUnfinished()) {
            getSharedPreferences("state", MODE_PRIVATE).edit().putBoolean(LOADING, false).apply();
        }
    }

    /** Before the process may be ended. */
    void save() {
        chat.save();
        SharedPreferences.Editor edit = getSharedPreferences("state", MODE_PRIVATE).edit();
        edit.putString(CONVERSATION, chat.conversation().id).putBoolean(THINKS, chat.thinks()).apply();
    }
}
