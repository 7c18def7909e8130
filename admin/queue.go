package admin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/penstock/penstock/admin/api"
)

// queue.go: the messages that wait. A list may be long, so it is sent while it is read, and
// ends after a number of messages or of octets; the client asks for what comes next. An action
// on many messages is cut into requests likewise, so that none takes longer than a client
// waits.

// maxPage is after how many octets a list ends; the message that crosses it is sent.
const maxPage = 4 << 20

// queued serves if there is a queue.
func (s *Server) queued(serve func(http.ResponseWriter, *http.Request) error) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		if s.opts.Queue == nil {
			return fail(api.CodeConflict, "give the configuration a store", "no store is configured, so no message waits here")
		}
		extend(w, quickTimeout, listTimeout)
		return serve(w, r)
	}
}

func (s *Server) queueCounts(w http.ResponseWriter, r *http.Request) error {
	c, err := s.opts.Queue.Counts(r.Context())
	if err != nil {
		return err
	}
	answer(w, http.StatusOK, c)
	return nil
}

func (s *Server) queueShow(w http.ResponseWriter, r *http.Request) error {
	m, err := s.opts.Queue.Show(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	answer(w, http.StatusOK, m)
	return nil
}

func (s *Server) queueWhy(w http.ResponseWriter, r *http.Request) error {
	x, err := s.opts.Queue.Why(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	answer(w, http.StatusOK, x)
	return nil
}

func (s *Server) queueList(w http.ResponseWriter, r *http.Request) error {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return fail(api.CodeBadRequest, "", "the parameters of the address are broken")
	}
	f, after, limit, err := listOf(q)
	if err != nil {
		return err
	}
	p := &page{w: w, limit: limit}
	err = s.opts.Queue.List(r.Context(), f, after, p.add)
	return p.end(err, s)
}

// listOf reads the parameters of a list. One that is not known is an error: it may be a
// condition that was to leave messages out.
func listOf(q url.Values) (f api.QueueFilter, after string, limit int, err error) {
	limit = api.QueueListDefault
	for name, values := range q {
		v := values[0]
		switch name {
		case "state":
			for _, v := range values {
				f.States = append(f.States, api.QueueState(v))
			}
			continue
		case "destination":
			f.Destination = v
		case "domain":
			f.Domain = v
		case "sender_domain":
			f.SenderDomain = v
		case "sender":
			f.Sender = v
		case "before":
			f.Before, err = time.Parse(time.RFC3339, v)
		case "since":
			f.Since, err = time.Parse(time.RFC3339, v)
		case "after":
			after = v
		case "limit":
			limit, err = strconv.Atoi(v)
			if limit < 1 || limit > api.QueueListMax {
				err = errors.New("out of range")
			}
		default:
			err = errors.New("not known")
		}
		if err != nil || len(values) > 1 {
			return f, "", 0, fail(api.CodeBadRequest, "see the documentation of /v1/queue", "the parameter %q makes no sense", cut(name, 100))
		}
	}
	return f, after, limit, checkFilter(&f)
}

// checkFilter looks for states that there are not. The rest is for who knows mail.
func checkFilter(f *api.QueueFilter) error {
	for _, st := range f.States {
		if !slices.Contains(api.QueueStates(), st) {
			return fail(api.CodeBadRequest, fmt.Sprintf("there are %v", api.QueueStates()), "%q is no state", cut(string(st), 100))
		}
	}
	return nil
}

// page is a list that is being sent. Until the first octets are out, an error has a status of
// its own; after that it stands at the end of the list.
type page struct {
	w     http.ResponseWriter
	limit int

	buf   bytes.Buffer
	last  string // ID of the last message
	n     int    // messages
	size  int    // octets sent
	sent  bool   // the status
	more  bool   // than fit
	wrong error  // of the connection
}

// add adds a message, if there is room.
func (p *page) add(m api.QueueMessage) bool {
	if p.n == p.limit || p.size+p.buf.Len() >= maxPage {
		p.more = true
		return false
	}
	text, err := json.Marshal(m)
	if err != nil { // our types have nothing that JSON lacks
		panic(fmt.Sprintf("admin: %T as JSON: %v", m, err))
	}
	p.buf.WriteString([]string{`{"messages":[`, ","}[min(p.n, 1)])
	p.buf.Write(text)
	p.n, p.last = p.n+1, m.ID
	if p.buf.Len() >= 64<<10 {
		p.flush()
	}
	return p.wrong == nil
}

func (p *page) flush() {
	if !p.sent {
		p.w.Header().Set("Content-Type", "application/json")
		p.w.WriteHeader(http.StatusOK)
		p.sent = true
	}
	p.size += p.buf.Len()
	_, p.wrong = p.buf.WriteTo(p.w)
}

// end ends the list.
func (p *page) end(err error, s *Server) error {
	if err != nil && !p.sent {
		return err
	}
	if p.n == 0 {
		p.buf.WriteString(`{"messages":[`)
	}
	p.buf.WriteString("]")
	if p.more || err != nil {
		fmt.Fprintf(&p.buf, `,"next":%q`, p.last)
	}
	if err != nil {
		if p.wrong == nil {
			s.opts.Log.Error("admin: the list of messages ended early", "err", err)
		}
		text, _ := json.Marshal(fail(api.CodeInternal, "the log of the gateway has more", "the list ended early"))
		fmt.Fprintf(&p.buf, `,"error":%s`, text)
	}
	p.buf.WriteString("}\n")
	p.flush()
	return nil
}

func (s *Server) queueAct(w http.ResponseWriter, r *http.Request) error {
	a, err := actionOf(r.Body)
	if err != nil {
		return err
	}
	done, err := s.opts.Queue.Act(r.Context(), a)
	if err != nil {
		return err
	}
	done.Verb, done.Dry = a.Verb, a.Dry
	if !a.Dry {
		s.opts.Log.Info("admin: queue changed", "token", tokenOf(r.Context()).Name, "verb", string(a.Verb), "ids", len(a.IDs), "filter", a.Filter != nil,
			"messages", len(done.Messages), "recipients", done.Recipients, "problems", len(done.Problems))
	}
	answer(w, http.StatusOK, done)
	return nil
}

// ofRecipients tells whether f chooses by recipients alone.
func ofRecipients(f api.QueueFilter) bool {
	return f.Sender == "" && f.SenderDomain == "" && f.Before.IsZero() && f.Since.IsZero()
}

// actionOf reads an action. A field that is not known is an error, as in listOf: an action must
// not reach farther than was meant.
func actionOf(body io.Reader) (a api.QueueAction, err error) {
	dec := json.NewDecoder(body)
	dec.DisallowUnknownFields()
	err = dec.Decode(&a)
	if err == nil && dec.More() {
		err = errors.New("more than one value")
	}
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return a, fail(api.CodeTooLarge, "name fewer messages at once", "the body has more than %d octets", tooLarge.Limit)
	}
	if err != nil {
		return a, fail(api.CodeBadRequest, "see the documentation of /v1/queue/actions", "the body is not an action in JSON")
	}
	switch {
	case !slices.Contains(api.QueueVerbs(), a.Verb):
		return a, fail(api.CodeBadRequest, fmt.Sprintf("there are %v", api.QueueVerbs()), "%q is no verb", cut(string(a.Verb), 100))
	case len(a.IDs) == 0 && a.Filter == nil:
		return a, fail(api.CodeBadRequest, "", "an action needs ids or a filter")
	case len(a.IDs) > 0 && a.Filter != nil && !ofRecipients(*a.Filter):
		return a, fail(api.CodeBadRequest, "", "with ids, a filter can only choose among their recipients")
	case len(a.IDs) > api.QueueActionMax || a.Limit < 0 || a.Limit > api.QueueActionMax:
		return a, fail(api.CodeBadRequest, "cut it into several", "an action is on %d messages at most", api.QueueActionMax)
	case (a.Verb == api.QueueBounce) != (a.Text != ""):
		return a, fail(api.CodeBadRequest, "", "a bounce needs a text, and nothing else has one")
	}
	if a.Limit == 0 {
		a.Limit = api.QueueActionMax
	}
	if a.Filter != nil {
		err = checkFilter(a.Filter)
	}
	return a, err
}
