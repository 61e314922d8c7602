package org.sampan.demo;

import android.app.Activity;
import android.content.ClipData;
import android.content.ClipboardManager;
import android.content.Context;
import android.content.Intent;
import android.os.Build;
import android.text.format.Formatter;
import android.view.WindowInsets;
import android.widget.Toast;
import org.sampan.core.Chat;
import org.sampan.core.Gguf;
import org.sampan.core.Notice;

/** What the app says, in the user's language, and how it hands texts on. */
final class Words {
    /** Characters that another app is handed at most: all of a process's calls share 1 MB, and more ends the app. */
    private static final int LONGEST = 200_000;

    private Words() {}

    static String bytes(Context context, long bytes) {
        return Formatter.formatShortFileSize(context, bytes);
    }

    static String bad(Context context, String name, Gguf.Bad bad) {
        int[] texts = {R.string.bad_missing, R.string.bad_not_gguf, R.string.bad_truncated, R.string.bad_split, R.string.bad_unknown};
        return context.getString(texts[bad.fault.ordinal()], name);
    }

    static String notice(Context context, Notice notice) {
        switch (notice.kind) {
            case ENGINE_DIED:
                return context.getString(R.string.notice_engine_died);
            case ENGINE_DIED_LOADING:
                return context.getString(R.string.notice_engine_died_loading);
            case ENGINE_KEEPS_DYING:
                return context.getString(R.string.notice_engine_keeps_dying);
            case ENGINE_NOT_STARTED:
                return context.getString(R.string.notice_engine_not_started);
            case ENGINE_TOO_SLOW:
                return context.getString(R.string.notice_engine_too_slow);
            case ENGINE_PROTOCOL:
                return context.getString(R.string.notice_engine_protocol);
            case LOAD_FAILED:
                return context.getString(R.string.notice_load_failed);
            case NO_MEMORY:
                return context.getString(R.string.notice_no_memory);
            case TEMPLATE:
                return context.getString(R.string.notice_template);
            case TOO_LONG:
                return context.getString(R.string.notice_too_long);
            case CONTEXT_FULL:
                return context.getString(R.string.notice_context_full);
            case CUT:
                return context.getString(R.string.notice_cut);
            case NOT_SAVED:
                return context.getString(R.string.notice_not_saved);
            default:
                return context.getString(R.string.notice_failed);
        }
    }

    static String ending(Context context, String reason) {
        switch (reason) {
            case "stopped":
                return context.getString(R.string.ending_stopped);
            case "length":
                return context.getString(R.string.ending_length);
            case "context":
                return context.getString(R.string.ending_context);
            case "died":
                return context.getString(R.string.ending_died);
            case "error":
                return context.getString(R.string.ending_error);
            default:
                return "";
        }
    }

    static String speed(Context context, double speed) {
        return context.getString(R.string.status_speed, String.format(context.getResources().getConfiguration().getLocales().get(0), "%.1f", speed));
    }

    static String status(Context context, Chat chat) {
        switch (chat.state()) {
            case NONE:
                return context.getString(R.string.status_choose);
            case LOADING:
                return context.getString(R.string.status_loading, (int) (chat.progress() * 100));
            case ANSWERING:
                return context.getString(chat.stopping() ? R.string.stopping : R.string.status_answering);
            case READY:
                String status = chat.speed() > 0 ? speed(context, chat.speed()) : context.getString(R.string.status_ready);
                return chat.memory() > 0 ? status + " · " + context.getString(R.string.status_memory, bytes(context, chat.memory())) : status;
            default:
                return context.getString(R.string.status_broken);
        }
    }

    static void copy(Context context, String text) {
        if (tooLong(context, text)) {
            return;
        }
        context.getSystemService(ClipboardManager.class).setPrimaryClip(ClipData.newPlainText(context.getString(R.string.app_name), text));
        // later Androids show what was copied themselves
        if (Build.VERSION.SDK_INT < 33) {
            Toast.makeText(context, R.string.copied, Toast.LENGTH_SHORT).show();
        }
    }

    private static boolean tooLong(Context context, String text) {
        if (text.length() > LONGEST) {
            Toast.makeText(context, R.string.too_long_to_share, Toast.LENGTH_LONG).show();
        }
        return text.length() > LONGEST;
    }

    static void share(Context context, String text) {
        if (tooLong(context, text)) {
            return;
        }
        Intent send = new Intent(Intent.ACTION_SEND).setType("text/plain").putExtra(Intent.EXTRA_TEXT, text);
        context.startActivity(Intent.createChooser(send, context.getString(R.string.share)));
    }

    /** Keeps the content clear of the bars, the cutout and the keyboard: the window lies under them, as it must from API 35 on. */
    @SuppressWarnings("deprecation")
    static void inset(Activity activity) {
        if (Build.VERSION.SDK_INT >= 30) {
            activity.getWindow().setDecorFitsSystemWindows(false);
        }
        activity.findViewById(R.id.root).setOnApplyWindowInsetsListener((view, insets) -> {
            if (Build.VERSION.SDK_INT >= 30) {
                android.graphics.Insets bars = insets.getInsets(
                    WindowInsets.Type.systemBars() | WindowInsets.Type.displayCutout() | WindowInsets.Type.ime());
                view.setPadding(bars.left, bars.top, bars.right, bars.bottom);
            } else {
                view.setPadding(insets.getSystemWindowInsetLeft(), insets.getSystemWindowInsetTop(),
                    insets.getSystemWindowInsetRight(), insets.getSystemWindowInsetBottom());
            }
            return insets;
        });
    }
}
