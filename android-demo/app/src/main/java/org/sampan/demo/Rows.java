package org.sampan.demo;

import android.app.Activity;
import android.graphics.Typeface;
import android.os.Bundle;
import android.text.SpannableString;
import android.text.Spanned;
import android.text.style.BackgroundColorSpan;
import android.text.style.RelativeSizeSpan;
import android.text.style.StyleSpan;
import android.text.style.TypefaceSpan;
import android.view.View;
import android.view.ViewGroup;
import android.widget.Button;
import android.widget.ScrollView;
import android.widget.TextView;
import java.util.ArrayList;
import java.util.List;
import org.sampan.core.Chat;
import org.sampan.core.Markup;
import org.sampan.core.Message;
import org.sampan.core.Thinking;

/** The messages on the screen. Rows are made once; only the answer that is being written changes. */
final class Rows {
    private static final String OPEN = "thoughts";
    private static final String FOLLOW = "follow";
    private static final int NEAR = 64;

    private final Activity activity;
    private final Chat chat;
    private final ScrollView scroll;
    private final ViewGroup list;
    /** What each row shows; null for the answer that is being written. */
    private final List<Message> shown = new ArrayList<>();
    /** Rows whose thoughts are unfolded. */
    private final List<Integer> unfolded = new ArrayList<>();
    private String conversation = "";
    private boolean follow = true;

    Rows(Activity activity, Chat chat, Bundle saved) {
        this.activity = activity;
        this.chat = chat;
        scroll = activity.findViewById(R.id.scroll);
        list = activity.findViewById(R.id.rows);
        if (saved != null) {
            unfolded.addAll(saved.getIntegerArrayList(OPEN));
            follow = saved.getBoolean(FOLLOW);
            conversation = chat.conversation().id;
        }
        // a new answer is followed while its end is in sight
        scroll.setOnScrollChangeListener((view, x, y, oldX, oldY) -> {
            if (y != oldY) {
                follow = y + scroll.getHeight() >= list.getHeight() - NEAR * activity.getResources().getDisplayMetrics().density;
            }
        });
        list.addOnLayoutChangeListener((view, l, t, r, b, ol, ot, or, ob) -> {
            if (follow && b - t != ob - ot) {
                scroll.post(() -> scroll.scrollTo(0, list.getHeight()));
            }
        });
    }

    void follow() {
        follow = true;
    }

    void save(Bundle out) {
        out.putIntegerArrayList(OPEN, new ArrayList<>(unfolded));
        out.putBoolean(FOLLOW, follow);
    }

    void render() {
        if (!conversation.equals(chat.conversation().id)) {
            conversation = chat.conversation().id;
            unfolded.clear();
            cut(0);
            follow = true;
        }
        List<Message> wanted = new ArrayList<>(chat.conversation().messages);
        if (chat.state() == Chat.State.ANSWERING) {
            wanted.add(null);
        }
        int same = 0;
        while (same < shown.size() && same < wanted.size() && shown.get(same) != null && shown.get(same) == wanted.get(same)) {
            same++;
        }
        // the row of the answer being written stays, and becomes that of the finished answer
        boolean growing = same < shown.size() && same + 1 == wanted.size() && shown.get(same) == null;
        cut(growing ? same + 1 : same);
        for (int i = same; i < wanted.size(); i++) {
            boolean mine = wanted.get(i) != null && wanted.get(i).isUser();
            if (i >= shown.size() || mine) {
                cut(i);
                list.addView(activity.getLayoutInflater().inflate(mine ? R.layout.row_mine : R.layout.row_answer, list, false));
                shown.add(null);
            }
            boolean written = shown.get(i) == null && growing && wanted.get(i) != null;
            shown.set(i, wanted.get(i));
            if (mine) {
                text(i, R.id.text, wanted.get(i).text);
            } else {
                answer(i, wanted.get(i));
            }
            if (written) {
                list.announceForAccessibility(wanted.get(i).said());
            }
        }
        for (int i = 0; i < shown.size(); i++) {
            boolean last = i + 1 == shown.size() && chat.state() == Chat.State.READY;
            View again = row(i).findViewById(R.id.again);
            again.setVisibility(last ? View.VISIBLE : View.GONE);
            again.setOnClickListener(view -> chat.again());
        }
    }

    /** Behind the view for an empty chat, which is the first child. */
    private View row(int i) {
        return list.getChildAt(i + 1);
    }

    private void cut(int count) {
        while (shown.size() > count) {
            shown.remove(shown.size() - 1);
            list.removeViewAt(list.getChildCount() - 1);
        }
    }

    private void text(int row, int id, CharSequence words) {
        TextView view = row(row).findViewById(id);
        if (!words.toString().contentEquals(view.getText())) {
            view.setText(words);
        }
        view.setVisibility(words.length() == 0 ? View.GONE : View.VISIBLE);
    }

    private CharSequence styled(String markdown) {
        Markup markup = Markup.of(markdown);
        SpannableString text = new SpannableString(markup.text);
        for (Markup.Run run : markup.runs) {
            boolean code = run.kind == Markup.Kind.CODE || run.kind == Markup.Kind.BLOCK;
            span(text, run, code ? new TypefaceSpan("monospace") : new StyleSpan(Typeface.BOLD));
            if (code) {
                span(text, run, new BackgroundColorSpan(activity.getColor(R.color.surface)));
            } else if (run.kind == Markup.Kind.HEADING) {
                span(text, run, new RelativeSizeSpan(1.15f));
            }
        }
        return text;
    }

    private static void span(SpannableString text, Markup.Run run, Object look) {
        text.setSpan(look, run.start, run.end, Spanned.SPAN_EXCLUSIVE_EXCLUSIVE);
    }

    private void answer(int i, Message message) {
        View row = row(i);
        Thinking parts = Thinking.of(message == null ? chat.partial() : message.text, message == null);
        boolean open = unfolded.contains(i);
        Button fold = row.findViewById(R.id.fold);
        fold.setVisibility(parts.thought.isEmpty() && !parts.open ? View.GONE : View.VISIBLE);
        fold.setText(open ? R.string.thought_hide : parts.open ? R.string.thinking : R.string.thought_show);
        fold.setOnClickListener(view -> {
            if (!unfolded.remove((Object) i)) {
                unfolded.add(i);
            }
            answer(i, shown.get(i));
        });
        text(i, R.id.thought, open ? parts.thought : "");
        text(i, R.id.text, styled(message == null && parts.answer.isEmpty() && !parts.open ? "…" : parts.answer));
        text(i, R.id.ending, message == null ? "" : ending(message));
        row.findViewById(R.id.actions).setVisibility(message == null ? View.GONE : View.VISIBLE);
        if (message != null) {
            row.findViewById(R.id.copy).setOnClickListener(view -> Words.copy(activity, message.said()));
            row.findViewById(R.id.share).setOnClickListener(view -> Words.share(activity, message.said()));
        }
    }

    private String ending(Message message) {
        String why = Words.ending(activity, message.reason);
        String speed = message.speed > 0 ? Words.speed(activity, message.speed) : "";
        return why.isEmpty() || speed.isEmpty() ? why + speed : why + " " + speed;
    }
}
