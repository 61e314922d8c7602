package org.sampan.demo;

import android.app.Activity;
import android.app.AlertDialog;
import android.os.Bundle;
import android.text.format.DateUtils;
import android.view.View;
import android.widget.ListView;
import android.widget.TextView;
import org.sampan.core.Conversation;

/** The saved conversations: open one, delete one. */
public final class ConversationsActivity extends Activity {
    private App app;
    private Items items;
    private AlertDialog question;

    @Override
    protected void onCreate(Bundle saved) {
        super.onCreate(saved);
        setContentView(R.layout.list);
        Words.inset(this);
        app = App.of(this);
        items = new Items(this);
        ((TextView) findViewById(R.id.title)).setText(R.string.conversations);
        ((TextView) findViewById(R.id.hint)).setText(R.string.conversations_none);
        findViewById(R.id.add).setVisibility(View.GONE);
        findViewById(R.id.back).setOnClickListener(view -> finish());
        ListView list = findViewById(R.id.list);
        list.setAdapter(items);
        list.setOnItemClickListener((parent, view, at, id) -> {
            app.chat().open((Conversation) items.getItem(at));
            finish();
        });
        refresh();
    }

    @Override
    protected void onDestroy() {
        super.onDestroy();
        if (question != null) {
            question.dismiss();
        }
    }

    private void refresh() {
        items.clear();
        for (Conversation one : app.store().all()) {
            CharSequence when = DateUtils.getRelativeTimeSpanString(one.changed, System.currentTimeMillis(), DateUtils.MINUTE_IN_MILLIS);
            items.add(one, one.title(), one.model.isEmpty() ? when.toString() : when + " · " + one.model, () -> delete(one.id));
        }
        findViewById(R.id.hint).setVisibility(items.isEmpty() ? View.VISIBLE : View.GONE);
        items.notifyDataSetChanged();
    }

    private void delete(String id) {
        question = new AlertDialog.Builder(this).setMessage(R.string.delete_chat)
            .setPositiveButton(R.string.delete, (dialog, which) -> {
                app.chat().delete(id);
                refresh();
            }).setNegativeButton(R.string.cancel, null).show();
    }
}
