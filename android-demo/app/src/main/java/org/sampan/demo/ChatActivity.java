package org.sampan.demo;

import android.app.Activity;
import android.content.Intent;
import android.os.Bundle;
import android.os.Handler;
import android.os.Looper;
import android.view.Menu;
import android.view.View;
import android.widget.EditText;
import android.widget.ImageButton;
import android.widget.PopupMenu;
import android.widget.ProgressBar;
import android.widget.TextView;
import org.sampan.core.Chat;
import org.sampan.core.Notice;

/** The chat. It shows what org.sampan.core.Chat says and passes on what the user does. */
public final class ChatActivity extends Activity {
    private static final long FRAME = 40;

    private final Handler handler = new Handler(Looper.getMainLooper());
    private final Runnable render = this::render;
    private App app;
    private Chat chat;
    private Rows rows;
    private Loader loader;
    private boolean waiting;

    @Override
    protected void onCreate(Bundle saved) {
        super.onCreate(saved);
        setContentView(R.layout.chat);
        Words.inset(this);
        app = App.of(this);
        chat = app.chat();
        loader = new Loader(this);
        rows = new Rows(this, chat, saved);
        click(R.id.model, this::models);
        click(R.id.choose, this::models);
        click(R.id.fresh, chat::fresh);
        click(R.id.more, this::menu);
        click(R.id.send, this::send);
        click(R.id.notice_close, chat::dismiss);
        click(R.id.notice_retry, chat::retry);
        click(R.id.notice_copy, () -> Words.copy(this, chat.notice() == null ? "" : chat.notice().detail));
        if (app.first()) {
            loader.last();
        }
    }

    private void click(int id, Runnable action) {
        findViewById(id).setOnClickListener(view -> action.run());
    }

    @Override
    protected void onStart() {
        super.onStart();
        chat.watch(() -> {
            if (!waiting) {
                waiting = true;
                handler.postDelayed(render, FRAME);
            }
        });
        chat.setVisible(true);
        render();
    }

    @Override
    protected void onStop() {
        super.onStop();
        chat.watch(() -> { });
        chat.setVisible(false);
        handler.removeCallbacks(render);
        waiting = false;
        app.save();
    }

    @Override
    protected void onDestroy() {
        super.onDestroy();
        loader.close();
    }

    @Override
    protected void onSaveInstanceState(Bundle out) {
        super.onSaveInstanceState(out);
        rows.save(out);
    }

    private void models() {
        startActivity(new Intent(this, ModelsActivity.class));
    }

    private void send() {
        if (chat.state() == Chat.State.ANSWERING) {
            chat.stop();
            return;
        }
        EditText input = findViewById(R.id.input);
        if (chat.state() == Chat.State.READY && !input.getText().toString().trim().isEmpty()) {
            rows.follow();
            chat.ask(input.getText().toString());
            input.setText("");
        } else if (chat.model() == null) {
            models();
        }
    }

    private void menu() {
        PopupMenu popup = new PopupMenu(this, findViewById(R.id.more));
        Menu menu = popup.getMenu();
        menu.add(Menu.NONE, R.string.conversations, 0, R.string.conversations);
        menu.add(Menu.NONE, R.string.models, 1, R.string.models);
        menu.add(Menu.NONE, R.string.share_chat, 2, R.string.share_chat).setEnabled(!chat.conversation().messages.isEmpty());
        menu.add(Menu.NONE, R.string.think_first, 3, R.string.think_first).setCheckable(true).setChecked(chat.thinks());
        popup.setOnMenuItemClickListener(item -> {
            int id = item.getItemId();
            if (id == R.string.conversations) {
                startActivity(new Intent(this, ConversationsActivity.class));
            } else if (id == R.string.models) {
                models();
            } else if (id == R.string.share_chat) {
                Words.share(this, chat.conversation().plain(getString(R.string.you), getString(R.string.assistant)));
            } else {
                chat.setThinks(!chat.thinks());
            }
            return true;
        });
        popup.show();
    }

    private void render() {
        waiting = false;
        app.settled();
        boolean answering = chat.state() == Chat.State.ANSWERING;
        boolean none = chat.model() == null;
        ((TextView) findViewById(R.id.title)).setText(none ? getString(R.string.no_model) : chat.modelName());
        TextView status = findViewById(R.id.status);
        String words = Words.status(this, chat);
        if (!words.contentEquals(status.getText())) {
            status.setText(words);
        }
        ProgressBar progress = findViewById(R.id.progress);
        progress.setVisibility(chat.state() == Chat.State.LOADING ? View.VISIBLE : View.GONE);
        progress.setProgress((int) (chat.progress() * 1000));
        ImageButton send = findViewById(R.id.send);
        send.setImageResource(answering ? R.drawable.ic_stop : R.drawable.ic_send);
        send.setContentDescription(getString(answering ? R.string.stop : R.string.send));
        send.setEnabled(answering ? !chat.stopping() : chat.state() == Chat.State.READY || none);
        send.setAlpha(send.isEnabled() ? 1f : 0.5f);
        getWindow().getDecorView().setKeepScreenOn(answering);
        notice(chat.notice());
        boolean empty = chat.conversation().messages.isEmpty() && !answering;
        findViewById(R.id.empty).setVisibility(empty ? View.VISIBLE : View.GONE);
        findViewById(R.id.choose).setVisibility(none ? View.VISIBLE : View.GONE);
        ((TextView) findViewById(R.id.empty_text)).setText(none ? R.string.empty_no_model : R.string.empty_ready);
        rows.render();
    }

    private void notice(Notice notice) {
        findViewById(R.id.notice).setVisibility(notice == null ? View.GONE : View.VISIBLE);
        if (notice != null) {
            TextView text = findViewById(R.id.notice_text);
            String words = Words.notice(this, notice);
            if (!words.contentEquals(text.getText())) {
                text.setText(words);
            }
            findViewById(R.id.notice_copy).setVisibility(notice.detail.isEmpty() ? View.GONE : View.VISIBLE);
            boolean broken = chat.state() == Chat.State.BROKEN;
            findViewById(R.id.notice_retry).setVisibility(broken ? View.VISIBLE : View.GONE);
            findViewById(R.id.notice_close).setVisibility(broken ? View.GONE : View.VISIBLE);
        }
    }
}
