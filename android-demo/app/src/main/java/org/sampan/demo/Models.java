package org.sampan.demo;

import android.content.Context;
import android.database.Cursor;
import android.net.Uri;
import android.os.Handler;
import android.provider.OpenableColumns;
import java.io.File;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.io.InputStream;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.sampan.core.Copy;
import org.sampan.core.Gguf;

/** The models on the phone, and the copy that is under way. All but the copying itself happens on the main thread. */
final class Models {
    private static final String ASSETS = "models";
    private static final long SPARE = 64L << 20;

    private final Context context;
    private final Handler main;
    private Runnable view = () -> { };
    private String copying;
    private long copied;
    private long size;
    private volatile boolean stopped;
    private String trouble;

    Models(Context context, Handler main) {
        this.context = context;
        this.main = main;
    }

    void watch(Runnable changed) {
        view = changed;
    }

    /** Name of the file that is being copied, or null. */
    String copying() {
        return copying;
    }

    long copied() {
        return copied;
    }

    /** Bytes that will be copied, or 0 where the other app does not say. */
    long size() {
        return size;
    }

    /** What went wrong with the last copy, told once. */
    String trouble() {
        String told = trouble;
        trouble = null;
        return told;
    }

    void stop() {
        stopped = true;
    }

    /** Where `adb push` puts models: the app's folder on the shared storage. */
    File folder() {
        File shared = context.getExternalFilesDir("models");
        if (shared != null) {
            return shared;
        }
        File own = new File(context.getFilesDir(), "models");
        own.mkdirs();
        return own;
    }

    private File bundledFolder() {
        return new File(context.getFilesDir(), "bundled");
    }

    boolean isBundled(File model) {
        return bundledFolder().equals(model.getParentFile());
    }

    /** Bundled ones first, copied out of the app where that was not done yet. */
    List<File> all() {
        List<File> found = new ArrayList<>();
        try {
            String[] assets = context.getAssets().list(ASSETS);
            for (String name : assets == null ? new String[0] : assets) {
                File file = bundled(name);
                if (file != null) {
                    found.add(file);
                }
            }
        } catch (IOException e) {
            trouble = e.getMessage();
        }
        // what a copy left behind when the process was ended in it
        File[] broken = copying != null ? null : folder().listFiles((folder, name) -> name.endsWith(Copy.PART));
        for (File one : broken == null ? new File[0] : broken) {
            one.delete();
        }
        File[] files = folder().listFiles((folder, name) -> name.endsWith(".gguf"));
        if (files != null) {
            Arrays.sort(files);
            found.addAll(Arrays.asList(files));
        }
        return found;
    }

    private File bundled(String name) throws IOException {
        File file = new File(bundledFolder(), name);
        File stamp = new File(bundledFolder(), name + "." + updated());
        if (file.isFile() && stamp.isFile()) {
            return file;
        }
        File[] old = bundledFolder().listFiles((folder, other) -> other.startsWith(name));
        for (File one : old == null ? new File[0] : old) {
            one.delete();
        }
        try (InputStream in = context.getAssets().open(ASSETS + "/" + name)) {
            Copy.to(file, in, bytes -> true);
            stamp.createNewFile();
            return file;
        } catch (Gguf.Bad e) {
            trouble = name + ": " + e.getMessage();
            return null;
        }
    }

    /** When the app was installed or updated: a new version may bring another model. */
    private long updated() throws IOException {
        try {
            return context.getPackageManager().getPackageInfo(context.getPackageName(), 0).lastUpdateTime;
        } catch (android.content.pm.PackageManager.NameNotFoundException e) {
            throw new IOException(e);
        }
    }

    /** Copies a picked file into the folder on a thread of its own. */
    void copy(Uri source) {
        if (copying != null) {
            return;
        }
        String shown = "";
        size = 0;
        try (Cursor row = context.getContentResolver().query(source, null, null, null, null)) {
            if (row != null && row.moveToFirst()) {
                shown = text(row, OpenableColumns.DISPLAY_NAME);
                String bytes = text(row, OpenableColumns.SIZE);
                size = bytes.matches("[0-9]{1,18}") ? Long.parseLong(bytes) : 0;
            }
        } catch (RuntimeException e) {
            // another app's provider may throw anything; the copy below tells what fails
            shown = "";
        }
        String name = Copy.name(shown);
        File target = new File(folder(), name);
        long free = folder().getUsableSpace();
        if (target.exists()) {
            trouble = context.getString(R.string.copy_exists, name);
        } else if (size + SPARE > free) {
            trouble = context.getString(R.string.copy_space, name, Words.bytes(context, size), Words.bytes(context, free));
        } else {
            copying = name;
            copied = 0;
            stopped = false;
            new Thread(() -> copy(source, target), "copy").start();
        }
        view.run();
    }

    private static String text(Cursor row, String column) {
        int at = row.getColumnIndex(column);
        String text = at < 0 ? null : row.getString(at);
        return text == null ? "" : text;
    }

    private void copy(Uri source, File target) {
        String wrong = null;
        long[] told = {0};
        try (InputStream in = context.getContentResolver().openInputStream(source)) {
            if (in == null) {
                throw new FileNotFoundException();
            }
            Copy.to(target, in, bytes -> {
                if (bytes - told[0] >= 4 << 20) {
                    told[0] = bytes;
                    main.post(() -> {
                        copied = bytes;
                        view.run();
                    });
                }
                return !stopped;
            });
        } catch (Copy.Stopped e) {
            wrong = null;
        } catch (Gguf.Bad e) {
            wrong = Words.bad(context, target.getName(), e);
        } catch (FileNotFoundException | SecurityException e) {
            wrong = context.getString(R.string.copy_unread);
        } catch (IOException | RuntimeException e) {
            wrong = context.getString(R.string.copy_failed, target.getName(), String.valueOf(e.getMessage()));
        }
        String why = wrong;
        main.post(() -> {
            copying = null;
            trouble = why == null ? trouble : why;
            view.run();
        });
    }
}
