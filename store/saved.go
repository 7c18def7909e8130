package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"time"
	"unicode/utf8"

	"github.com/penstock/penstock/mail/smtp"
)

// saved.go: a message as JSON, for people and for other stores. Addresses are as in the
// envelope, with their brackets; times are those of RFC 3339.

// text is a string of any octets. JSON has no place for those that are not UTF-8: they are
// {"base64": "…"}.
type text string

func (t text) MarshalJSON() ([]byte, error) {
	if utf8.ValidString(string(t)) {
		return json.Marshal(string(t))
	}
	return json.Marshal(map[string][]byte{"base64": []byte(t)})
}

func (t *text) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err == nil {
		*t = text(s)
		return nil
	}
	var o struct {
		Base64 []byte `json:"base64"`
	}
	if err := json.Unmarshal(b, &o); err != nil {
		return err
	}
	*t = text(o.Base64)
	return nil
}

type savedMessage struct {
	ID         ID               `json:"id"`
	Arrived    time.Time        `json:"arrived"`
	Size       int64            `json:"size"`
	Expires    time.Time        `json:"expires,omitzero"`
	Priority   int              `json:"priority,omitempty"`
	Sender     savedSender      `json:"sender"`
	Origin     savedOrigin      `json:"origin"`
	Recipients []savedRecipient `json:"recipients"`
	Attempts   []savedAttempt   `json:"attempts,omitempty"`
}

type savedSender struct {
	Path       text  `json:"path"`
	Size       int64 `json:"size,omitempty"`
	Body       text  `json:"body,omitempty"`
	UTF8       bool  `json:"utf8,omitempty"`
	RequireTLS bool  `json:"require_tls,omitempty"`
	Return     text  `json:"return,omitempty"`
	EnvID      text  `json:"envid,omitempty"`
	Auth       text  `json:"auth,omitempty"`
}

type savedOrigin struct {
	Listener text        `json:"listener,omitempty"`
	Session  text        `json:"session,omitempty"`
	ReportOf ID          `json:"report_of,omitempty"`
	Reason   text        `json:"reason,omitempty"`
	By       time.Time   `json:"by,omitzero"`
	Mode     text        `json:"mode,omitempty"`
	Client   savedClient `json:"client"`

	Trusted     bool `json:"trusted,omitempty"`
	TLSOptional bool `json:"tls_optional,omitempty"`
}

type savedClient struct {
	Name     text       `json:"name,omitempty"`
	Addr     netip.Addr `json:"addr,omitzero"`
	Port     uint16     `json:"port,omitempty"`
	Proto    text       `json:"proto,omitempty"`
	Helo     text       `json:"helo,omitempty"`
	Ident    text       `json:"ident,omitempty"`
	Source   text       `json:"source,omitempty"`
	Login    text       `json:"login,omitempty"`
	DestAddr netip.Addr `json:"dest_addr,omitzero"`
	DestPort uint16     `json:"dest_port,omitempty"`
}

type savedRecipient struct {
	Path         text        `json:"path"`
	Notify       uint8       `json:"notify,omitempty"` // bits of smtp.Notify
	OriginalType text        `json:"original_type,omitempty"`
	Original     text        `json:"original,omitempty"`
	Destination  text        `json:"destination"`
	State        savedState  `json:"state"`
	Due          time.Time   `json:"due,omitzero"`
	Tries        int         `json:"tries,omitempty"`
	Last         *savedReply `json:"last,omitempty"`
	DelayTold    bool        `json:"delay_told,omitempty"`
}

type savedAttempt struct {
	Time        time.Time   `json:"time"`
	Destination text        `json:"destination"`
	Host        text        `json:"host,omitempty"`
	Addr        netip.Addr  `json:"addr,omitzero"`
	TLS         text        `json:"tls,omitempty"`
	Verdict     text        `json:"verdict,omitempty"`
	Recipients  []int       `json:"recipients"`
	Reply       *savedReply `json:"reply,omitempty"`
	Took        int64       `json:"took_ns"`
}

type savedReply struct {
	Code  int    `json:"code"`
	Enh   [3]int `json:"enhanced"`
	Text  text   `json:"text,omitempty"`
	Cause text   `json:"cause,omitempty"`
}

// stateWords are the words for states.
var stateWords = [...]string{Waiting: "waiting", Held: "held", Delivered: "delivered", Failed: "failed"}

// String returns the word for a state.
func (s State) String() string {
	if int(s) < len(stateWords) {
		return stateWords[s]
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}

type savedState State

func (s savedState) MarshalText() ([]byte, error) { return []byte(State(s).String()), nil }

func (s *savedState) UnmarshalText(b []byte) error {
	for i, word := range stateWords {
		if word == string(b) {
			*s = savedState(i)
			return nil
		}
	}
	return fmt.Errorf("store: no such state: %q", b)
}

func saveReply(r *smtp.Reply) *savedReply {
	if r == nil {
		return nil
	}
	s := &savedReply{Code: r.Code, Enh: r.Enh, Text: text(r.Text)}
	if r.Cause != nil {
		s.Cause = text(r.Cause.Error())
	}
	return s
}

func (s *savedReply) reply() *smtp.Reply {
	if s == nil {
		return nil
	}
	r := &smtp.Reply{Code: s.Code, Enh: s.Enh, Text: string(s.Text)}
	if s.Cause != "" {
		r.Cause = errors.New(string(s.Cause))
	}
	return r
}

// savedPath is a path as MAIL and RCPT have it.
func savedPath(p smtp.Path) text { return text("<" + p.String() + ">") }

// save returns m as it is written.
func save(m *Message) *savedMessage {
	f, c := m.Sender, m.Origin.Client
	s := &savedMessage{
		ID: m.ID, Arrived: m.Arrived, Size: m.Size, Expires: m.Expires, Priority: m.Priority,
		Sender: savedSender{savedPath(f.Path), f.Size, text(f.Body), f.UTF8, f.RequireTLS, text(f.Return), text(f.EnvID), text(f.Auth)},
		Origin: savedOrigin{
			Listener: text(m.Origin.Listener), Session: text(m.Origin.Session), ReportOf: m.Origin.ReportOf,
			Reason: text(m.Origin.Reason), By: m.Origin.By, Mode: text(m.Origin.Mode),
			Client:  savedClient{text(c.Name), c.Addr, c.Port, text(c.Proto), text(c.Helo), text(c.Ident), text(c.Source), text(c.Login), c.DestAddr, c.DestPort},
			Trusted: m.Origin.Trusted, TLSOptional: m.Origin.TLSOptional,
		},
	}
	for _, r := range m.Recipients {
		s.Recipients = append(s.Recipients, savedRecipient{
			Path: savedPath(r.Path), Notify: uint8(r.Notify), OriginalType: text(r.Original.Type), Original: text(r.Original.Address),
			Destination: text(r.Destination), State: savedState(r.State), Due: r.Due, Tries: r.Tries, Last: saveReply(r.Last), DelayTold: r.DelayTold,
		})
	}
	for _, a := range m.Attempts {
		s.Attempts = append(s.Attempts, savedAttempt{Time: a.Time, Destination: text(a.Destination), Host: text(a.Host), Addr: a.Addr,
			TLS: text(a.TLS), Verdict: text(a.Verdict), Recipients: a.Recipients, Reply: saveReply(a.Reply), Took: int64(a.Took)})
	}
	return s
}

// message is save backwards.
func (s *savedMessage) message() (*Message, error) {
	f, c := s.Sender, s.Origin.Client
	m := &Message{
		ID: s.ID, Arrived: s.Arrived, Size: s.Size, Expires: s.Expires, Priority: s.Priority,
		Sender: smtp.Sender{Size: f.Size, Body: smtp.Body(f.Body), UTF8: f.UTF8, RequireTLS: f.RequireTLS,
			Return: smtp.Return(f.Return), EnvID: string(f.EnvID), Auth: string(f.Auth)},
		Origin: Origin{
			Listener: string(s.Origin.Listener), Session: string(s.Origin.Session), ReportOf: s.Origin.ReportOf,
			Reason: string(s.Origin.Reason), By: s.Origin.By, Mode: string(s.Origin.Mode),
			Client: smtp.Forwarded{Name: string(c.Name), Addr: c.Addr, Port: c.Port, Proto: string(c.Proto), Helo: string(c.Helo),
				Ident: string(c.Ident), Source: string(c.Source), Login: string(c.Login), DestAddr: c.DestAddr, DestPort: c.DestPort},
			Trusted: s.Origin.Trusted, TLSOptional: s.Origin.TLSOptional,
		},
	}
	var err error
	if m.Sender.Path, err = smtp.ParsePath(string(f.Path)); err != nil {
		return nil, fmt.Errorf("sender: %w", err)
	}
	for i, r := range s.Recipients {
		n := Recipient{Destination: Destination(r.Destination), State: State(r.State), Due: r.Due, Tries: r.Tries, Last: r.Last.reply(), DelayTold: r.DelayTold}
		n.Notify = smtp.Notify(r.Notify)
		n.Original = smtp.OriginalRecipient{Type: string(r.OriginalType), Address: string(r.Original)}
		if n.Path, err = smtp.ParsePath(string(r.Path)); err != nil {
			return nil, fmt.Errorf("recipient %d: %w", i, err)
		}
		m.Recipients = append(m.Recipients, n)
	}
	for _, a := range s.Attempts {
		m.Attempts = append(m.Attempts, Attempt{Time: a.Time, Destination: Destination(a.Destination), Host: string(a.Host), Addr: a.Addr,
			TLS: string(a.TLS), Verdict: string(a.Verdict), Recipients: a.Recipients, Reply: a.Reply.reply(), Took: time.Duration(a.Took)})
	}
	return m, nil
}
