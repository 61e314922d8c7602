package org.sampan.demo;

import android.app.Activity;
import android.app.AlertDialog;
import java.io.File;
import java.io.IOException;
import java.util.List;
import org.sampan.core.Fit;
import org.sampan.core.Gguf;

/** Checks a model against the phone before it is loaded, and says what does not fit. */
final class Loader {
    private final Activity activity;
    private final App app;
    private AlertDialog dialog;

    Loader(Activity activity) {
        this.activity = activity;
        this.app = App.of(activity);
    }

    /** The model of the last time, or the bundled one; a load that did not end well is not tried again unasked. */
    void last() {
        if (app.lastLoadUnfinished()) {
            app.settled();
            tell(activity.getString(R.string.last_load_unfinished), null);
            return;
        }
        List<File> all = app.models().all(); // a bundled one may be of an older version of the app until then
        File file = app.lastModel() != null ? app.lastModel() : all.isEmpty() ? null : all.get(0);
        if (file != null) {
            load(file, () -> { });
        }
    }

    /** `done` runs when the model loads. */
    void load(File file, Runnable done) {
        if (!app.lacks().isEmpty()) {
            tell(activity.getString(R.string.cpu_lacks, app.lacks()), null);
            return;
        }
        try {
            Fit fit = app.fit(Gguf.read(file));
            String need = Words.bytes(activity, fit.need);
            Runnable start = () -> {
                app.load(file, fit.context);
                done.run();
            };
            if (fit.verdict == Fit.Verdict.FITS) {
                start.run();
            } else if (fit.verdict == Fit.Verdict.TIGHT) {
                tell(activity.getString(R.string.tight, file.getName(), need), start);
            } else {
                tell(activity.getString(R.string.too_large, file.getName(), need, Words.bytes(activity, fit.limit)), null);
            }
        } catch (Gguf.Bad e) {
            tell(Words.bad(activity, file.getName(), e), null);
        } catch (IOException e) {
            tell(activity.getString(R.string.copy_unread), null);
        }
    }

    /** A dialog, with a button to go on where there is something to go on with. */
    void tell(String message, Runnable anyway) {
        close();
        AlertDialog.Builder builder = new AlertDialog.Builder(activity).setMessage(message);
        if (anyway == null) {
            builder.setPositiveButton(R.string.dismiss, null);
        } else {
            builder.setPositiveButton(R.string.load_anyway, (which, button) -> anyway.run()).setNegativeButton(R.string.cancel, null);
        }
        dialog = builder.show();
    }

    void close() {
        if (dialog != null) {
            dialog.dismiss();
            dialog = null;
        }
    }
}
