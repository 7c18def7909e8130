package client

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/penstock/penstock/admin/api"
)

// queue.go: the messages that wait.

// Queue returns messages that match, in order of ID from behind after on, at most limit; 0 is
// api.QueueListDefault. If QueuePage.Next is not empty there may be more. With an error the
// page has what came before it.
func (c *Client) Queue(ctx context.Context, f api.QueueFilter, after string, limit int) (api.QueuePage, error) {
	q := url.Values{}
	for _, st := range f.States {
		q.Add("state", string(st))
	}
	set := func(name, value string) {
		if value != "" {
			q.Set(name, value)
		}
	}
	set("destination", f.Destination)
	set("domain", f.Domain)
	set("sender_domain", f.SenderDomain)
	set("sender", f.Sender)
	set("after", after)
	for name, t := range map[string]time.Time{"before": f.Before, "since": f.Since} {
		if !t.IsZero() {
			q.Set(name, t.UTC().Format(time.RFC3339Nano))
		}
	}
	if limit > 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	var p api.QueuePage
	if err := c.askQuery(ctx, "/v1/queue", q, &p); err != nil {
		return p, err
	}
	if p.Error != nil {
		return p, p.Error
	}
	return p, nil
}

// QueueCounts returns how much waits.
func (c *Client) QueueCounts(ctx context.Context) (api.QueueCounts, error) {
	var n api.QueueCounts
	err := c.ask(ctx, "/v1/queue/counts", &n)
	return n, err
}

// QueueMessage returns a message.
func (c *Client) QueueMessage(ctx context.Context, id string) (api.QueueMessage, error) {
	var m api.QueueMessage
	err := c.ask(ctx, "/v1/queue/"+url.PathEscape(id), &m)
	return m, err
}

// QueueWhy returns why a message waits.
func (c *Client) QueueWhy(ctx context.Context, id string) (api.QueueExplanation, error) {
	var x api.QueueExplanation
	err := c.ask(ctx, "/v1/queue/"+url.PathEscape(id)+"/why", &x)
	return x, err
}

// QueueAct does something to messages, at most api.QueueActionMax of them; if QueueDone.Next is
// not empty there may be more.
func (c *Client) QueueAct(ctx context.Context, a api.QueueAction) (api.QueueDone, error) {
	var done api.QueueDone
	body, err := json.Marshal(a)
	if err != nil {
		return done, fmt.Errorf("client: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	text, err := c.do(ctx, http.MethodPost, "/v1/queue/actions", http.Header{"Content-Type": {"application/json"}}, body, maxAnswer)
	if err != nil {
		return done, err
	}
	err = read(text, &done)
	return done, err
}
