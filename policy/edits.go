package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/penstock/penstock/mail/message"
	"github.com/penstock/penstock/mail/smtp"
)

// edits.go: what a filter may change, and the log that makes a filter's changes one
// thing: all of them count, or none.

// Errors of the methods of Edits. The edit was not made; the filter may go on.
var (
	// ErrPhase: this kind of edit does not belong to the stage.
	ErrPhase = errors.New("policy: not at this stage")
	// ErrRange: there is no such field, recipient, address or stretch of the body.
	ErrRange = errors.New("policy: out of range")
	// ErrProtected: the field is trace of the gateway's, no filter's business.
	ErrProtected = errors.New("policy: field is protected")
	// ErrTooMuch: the filter changed more than one filter may.
	ErrTooMuch = errors.New("policy: too many edits")
)

// EditLimits bound the edits of one call: a filter that edits in a loop must not fill the
// memory with its log. The zero value of each field, and what is below, means its default.
type EditLimits struct {
	HeaderEdits int   // of fields. Default 256.
	HeaderSize  int64 // octets of new fields. Default 128 KiB.
	Recipients  int   // that are added. Default 100.
	// BodyGrowth is how much larger than twice its size it may make a body, in octets.
	// Default 1 MiB.
	BodyGrowth int64
}

// withDefaults fills in what is zero.
func (l EditLimits) withDefaults() EditLimits {
	if l.HeaderEdits <= 0 {
		l.HeaderEdits = 256
	}
	if l.HeaderSize <= 0 {
		l.HeaderSize = 128 << 10
	}
	if l.Recipients <= 0 {
		l.Recipients = 100
	}
	if l.BodyGrowth <= 0 {
		l.BodyGrowth = 1 << 20
	}
	return l
}

// Limits of the edits of one call that are the same for all filters.
const (
	maxSplices     = 1024
	maxEnvelopeOps = 4096
	maxTags        = 64 // of one filter in a transaction, or in a session outside of them
	maxTagBytes    = 1024
)

// EditKind says what an Edit did.
type EditKind uint8

// The kinds of edits.
const (
	EditHeaderAdd EditKind = iota + 1
	EditHeaderSet
	EditHeaderDelete
	EditBodySplice
	EditSender
	EditRcptAdd
	EditRcptSet
	EditRcptDelete
	EditTag
	EditScore
	EditRcptVerdict
	EditWay
)

// Edit is one entry of the log.
type Edit struct {
	Kind  EditKind
	Index int    // of the field or recipient at the time of the edit
	Name  string // of the field or tag, the action of a verdict, or the part of a Way: relay, source, tls, to
	Value string // of the field or tag, the new address, or the reply or reason of a verdict
	Old   string // the address before, or of the recipient that a verdict is about
	Off   int64  // of a splice
	Del   int64  // octets that a splice took out
	Add   int64  // octets that it put in
	Milli int64  // of a score
}

// String says in words what the edit did, on one line.
func (e Edit) String() string { return oneLine(e.text()) }

// oneLine keeps what a filter wrote into a tag from making lines of its own in a log.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

func (e Edit) text() string {
	switch e.Kind {
	case EditHeaderAdd:
		return "added " + e.Name + ": " + e.Value
	case EditHeaderSet:
		return "set " + e.Name + ": " + e.Value
	case EditHeaderDelete:
		return "deleted " + e.Name
	case EditBodySplice:
		return fmt.Sprintf("body at %d: %d octets replaced by %d", e.Off, e.Del, e.Add)
	case EditSender:
		return "sender <" + e.Old + "> became <" + e.Value + ">"
	case EditRcptAdd:
		return "added recipient <" + e.Value + ">"
	case EditRcptSet:
		return "recipient <" + e.Old + "> became <" + e.Value + ">"
	case EditRcptDelete:
		return "dropped recipient <" + e.Old + ">"
	case EditRcptVerdict:
		return strings.TrimSuffix("recipient <"+e.Old+">: "+e.Name+" "+e.Value, " ")
	case EditWay:
		return "goes by " + e.Name + "=" + e.Value
	case EditTag:
		return "tag " + e.Name + "=" + e.Value
	case EditScore:
		return "score " + Score{e.Name, e.Milli}.String()
	}
	return "unknown edit"
}

// Edits is the log of one filter's changes in one call, and the view of the
// transaction with them. It is for the goroutine of the call and ends with it. The zero
// Edits takes no edit.
type Edits struct {
	filter  string
	relay   bool // it may name whom the client may not relay to
	limits  *EditLimits
	stage   Stage
	session *Session
	tx      *Transaction // the base; nil outside a transaction
	log     []Edit

	// The view. Each part is the base's until it is changed for the first time.
	message  *Message
	sender   *smtp.Sender // nil outside a transaction
	rcpts    []Recipient
	ownRcpts bool
	judged   bool // a recipient has a verdict of its own
	chosen   Way
	ownWay   bool

	tally
}

// tally is what counts for the limits.
type tally struct {
	headerOps, headerLen, splices, envelopeOps, added, tags, scores int

	spliced int64 // octets
}

// begin makes e an empty log on tx, keeping the memory of the last one. It is on the way of
// every call: one field after the other is set, since a whole Edits would be made elsewhere
// first and then copied.
func (e *Edits) begin(p *place, stage Stage, s *Session, tx *Transaction) {
	e.filter, e.relay, e.limits = p.name, p.MayRelay, &p.Limits
	e.stage, e.session, e.tx = stage, s, tx
	e.log = e.log[:0]
	e.ownRcpts, e.judged, e.ownWay, e.tally = false, false, false, tally{}
	if tx == nil {
		e.message, e.sender, e.rcpts = nil, nil, nil
		return
	}
	e.message, e.sender, e.rcpts = tx.Message, &tx.Sender, tx.Rcpts
}

// end forgets the message and what was done to it: an idle session must not keep them alive.
func (e *Edits) end() {
	e.session, e.tx, e.log = nil, nil, nil
	e.message, e.sender, e.rcpts = nil, nil, nil
}

// Log returns what was done so far. It is valid during the call.
func (e *Edits) Log() []Edit { return slices.Clip(e.log) }

// Message returns the message with the edits so far; nil before StageHeaders.
func (e *Edits) Message() *Message { return e.message }

// Sender returns the sender with the edits so far, the zero Sender outside a transaction. It
// must not be changed and is valid until the next edit.
func (e *Edits) Sender() *smtp.Sender {
	if e.sender == nil {
		return &smtp.Sender{}
	}
	return e.sender
}

// Recipients returns the recipients with the edits so far. The slice must not be
// changed and is valid until the next edit.
func (e *Edits) Recipients() []Recipient { return slices.Clip(e.rcpts) }

func (e *Edits) headerEdit() error {
	if e.stage != StageHeaders && e.stage != StageMessage || e.message == nil {
		return ErrPhase
	}
	if e.headerOps >= e.limits.HeaderEdits {
		return fmt.Errorf("%w: header", ErrTooMuch)
	}
	return nil
}

// newField makes a field and counts its octets.
func (e *Edits) newField(name, value string) (message.Field, error) {
	f, err := message.NewField(name, value)
	if err != nil {
		return f, err
	}
	if int64(e.headerLen+len(f.Raw())) > e.limits.HeaderSize {
		return f, fmt.Errorf("%w: header", ErrTooMuch)
	}
	e.headerLen += len(f.Raw())
	return f, nil
}

func (e *Edits) setHeader(h message.Header, done Edit) {
	m := *e.message
	m.Header = h
	e.message = &m
	e.headerOps++
	e.log = append(e.log, done)
}

// protected tells whether a field is part of the trace that loops and faults are found
// by, or says in our name what was found out about the mail.
func (e *Edits) protected(name, value string) bool {
	switch name = strings.TrimSpace(name); {
	case strings.EqualFold(name, "Received"):
		return true
	case strings.EqualFold(name, "Authentication-Results"):
		return e.session != nil && e.session.Host != "" && strings.EqualFold(authServID(value), e.session.Host)
	}
	return false
}

// authServID returns the name of who wrote an Authentication-Results field, which stands
// first in it (RFC 8601, Section 2.2), comments and quotes taken away.
func authServID(value string) string {
	var id strings.Builder
	depth, quoted := 0, false
	for i := 0; i < len(value); i++ {
		c := value[i]
		switch {
		case c == '\\' && (quoted || depth > 0) && i+1 < len(value):
			if i++; depth == 0 {
				id.WriteByte(value[i])
			}
		case c == '"' && depth == 0:
			quoted = !quoted
		case quoted:
			id.WriteByte(c)
		case c == '(':
			depth++
		case c == ')' && depth > 0:
			depth--
		case depth > 0:
		case strings.IndexByte(" \t\r\n", c) >= 0 && id.Len() == 0:
		case strings.IndexByte(" \t\r\n;", c) >= 0:
			return strings.TrimSuffix(id.String(), ".")
		default:
			id.WriteByte(c)
		}
	}
	return strings.TrimSuffix(id.String(), ".")
}

// AddHeader puts a new field at index at; 0 is the top, a negative number or the number
// of fields or more the bottom.
func (e *Edits) AddHeader(at int, name, value string) error {
	if err := e.headerEdit(); err != nil {
		return err
	}
	if n := e.message.Header.Len(); at < 0 || at > n {
		at = n
	}
	if e.protected(name, value) {
		return ErrProtected
	}
	f, err := e.newField(name, value)
	if err != nil {
		return err
	}
	e.setHeader(e.message.Header.Insert(at, f), Edit{Kind: EditHeaderAdd, Index: at, Name: name, Value: value})
	return nil
}

// SetHeader gives field i a new value. Its name stays as it was written.
func (e *Edits) SetHeader(i int, value string) error {
	if err := e.headerEdit(); err != nil {
		return err
	}
	old, err := e.field(i)
	if err != nil {
		return err
	}
	name := string(old.Name())
	if e.protected(name, value) {
		return ErrProtected
	}
	f, err := e.newField(name, value)
	if err != nil {
		return err
	}
	e.setHeader(e.message.Header.Replace(i, f), Edit{Kind: EditHeaderSet, Index: i, Name: name, Value: value})
	return nil
}

// DeleteHeader takes field i out.
func (e *Edits) DeleteHeader(i int) error {
	if err := e.headerEdit(); err != nil {
		return err
	}
	old, err := e.field(i)
	if err != nil {
		return err
	}
	e.setHeader(e.message.Header.Delete(i), Edit{Kind: EditHeaderDelete, Index: i, Name: string(old.Name())})
	return nil
}

func (e *Edits) field(i int) (message.Field, error) {
	if i < 0 || i >= e.message.Header.Len() {
		return message.Field{}, ErrRange
	}
	f := e.message.Header.Field(i)
	if e.protected(string(f.Name()), string(f.Value())) {
		return message.Field{}, ErrProtected
	}
	return f, nil
}

// SpliceBody replaces del octets of the body at off by data, of which it keeps a copy.
// With off 0 and del the body's size it replaces the body. It may not be larger then than
// MaxBody; one call may not put in more than that either.
func (e *Edits) SpliceBody(off, del int64, data []byte) error {
	return e.spliceBody(off, del, int64(len(data)), func(b Body) Body { return b.splice(off, del, append([]byte(nil), data...)) })
}

// ReplaceBody puts another body in the place of the whole, as SpliceBody would, and copies
// nothing.
func (e *Edits) ReplaceBody(b Body) error {
	var size int64
	if e.message != nil {
		size = e.message.Body.Size()
	}
	return e.spliceBody(0, size, b.Size(), func(Body) Body { return b })
}

// spliceBody makes the change if it may be: add octets for del at off.
func (e *Edits) spliceBody(off, del, add int64, change func(Body) Body) error {
	if e.stage != StageMessage || e.message == nil {
		return ErrPhase
	}
	size := e.message.Body.Size()
	if off < 0 || del < 0 || off > size || del > size-off {
		return ErrRange
	}
	m, most := *e.message, e.MaxBody()
	m.came()
	if e.splices >= maxSplices || e.spliced+add > most || size-del+add > most {
		return fmt.Errorf("%w: body", ErrTooMuch)
	}
	m.Body = change(m.Body)
	e.message = &m
	e.splices++
	e.spliced += add
	e.log = append(e.log, Edit{Kind: EditBodySplice, Off: off, Del: del, Add: add})
	return nil
}

// MaxBody is the largest that the filter may make the body: twice what it came with, however
// many filters change it, and EditLimits.BodyGrowth. It is 0 where there is no message.
func (e *Edits) MaxBody() int64 {
	if e.message == nil || e.limits == nil {
		return 0
	}
	m := *e.message
	return 2*m.came() + e.limits.BodyGrowth
}

// SetSender changes the reverse-path; the null path makes the message one that is never
// answered with a bounce.
func (e *Edits) SetSender(p smtp.Path) error {
	if err := e.envelopeEdit(StageMail); err != nil {
		return err
	}
	if err := checkPath(p); err != nil {
		return err
	}
	old, changed := e.sender.Path, *e.sender
	changed.Path = p
	e.sender = &changed
	e.log = append(e.log, Edit{Kind: EditSender, Old: old.String(), Value: p.String()})
	return nil
}

func (e *Edits) envelopeEdit(first Stage) error {
	if e.tx == nil || e.stage < first || e.stage > StageMessage || e.stage == StageChunk {
		return ErrPhase
	}
	if e.envelopeOps++; e.envelopeOps > maxEnvelopeOps {
		return fmt.Errorf("%w: envelope", ErrTooMuch)
	}
	return nil
}

// checkPath refuses what no client could have said. A Path that was not parsed may hold
// anything, a line end included.
func checkPath(p smtp.Path) error {
	if q, err := smtp.ParsePath("<" + p.String() + ">"); err != nil || q != p {
		return fmt.Errorf("%w: not an address: %.80q", ErrRange, p.Local)
	}
	return nil
}

// checkRecipient refuses the null path too.
func checkRecipient(p smtp.Path) error {
	if p.IsNull() {
		return fmt.Errorf("%w: the null path is no recipient", ErrRange)
	}
	return checkPath(p)
}

func (e *Edits) rcptEdit() error {
	if err := e.envelopeEdit(StageRcpt); err != nil {
		return err
	}
	if !e.ownRcpts {
		e.rcpts = append([]Recipient(nil), e.rcpts...)
		e.ownRcpts = true
	}
	return nil
}

// AddRecipient adds a recipient. It has to pass the listener's rules like one that the
// client names; if it does not, that is the filter's failure. At StageRcpt the candidate
// stays the last.
func (e *Edits) AddRecipient(p smtp.Path) error {
	if err := e.rcptEdit(); err != nil {
		return err
	}
	if err := checkRecipient(p); err != nil {
		return err
	}
	if e.added++; e.added > e.limits.Recipients {
		return fmt.Errorf("%w: recipients", ErrTooMuch)
	}
	r := Recipient{Recipient: smtp.Recipient{Path: p}, AddedBy: e.filter, Relay: e.relay}
	at := len(e.rcpts)
	if e.stage == StageRcpt && at > 0 {
		at--
		e.rcpts = append(e.rcpts, e.rcpts[at])
		e.rcpts[at] = r
	} else {
		e.rcpts = append(e.rcpts, r)
	}
	e.log = append(e.log, Edit{Kind: EditRcptAdd, Index: at, Value: p.String()})
	return nil
}

// SetRecipient changes recipient i.
func (e *Edits) SetRecipient(i int, p smtp.Path) error {
	if err := e.rcptEdit(); err != nil {
		return err
	}
	if i < 0 || i >= len(e.rcpts) {
		return ErrRange
	}
	if err := checkRecipient(p); err != nil {
		return err
	}
	old := e.rcpts[i].Path
	e.rcpts[i].Path, e.rcpts[i].AddedBy, e.rcpts[i].Relay = p, e.filter, e.relay
	e.log = append(e.log, Edit{Kind: EditRcptSet, Index: i, Old: old.String(), Value: p.String()})
	return nil
}

// DeleteRecipient takes recipient i out. The candidate of StageRcpt is not taken out
// but refused or discarded, by a verdict. So is a mail as a whole: a filter that takes
// out all recipients and has no objection has failed.
func (e *Edits) DeleteRecipient(i int) error {
	if err := e.rcptEdit(); err != nil {
		return err
	}
	if i < 0 || i >= len(e.rcpts) || e.stage == StageRcpt && i == len(e.rcpts)-1 {
		return ErrRange
	}
	e.log = append(e.log, Edit{Kind: EditRcptDelete, Index: i, Old: e.rcpts[i].Path.String()})
	e.rcpts = append(e.rcpts[:i], e.rcpts[i+1:]...)
	return nil
}

// Tag notes something for the filters behind and for the log.
func (e *Edits) Tag(key, value string) error {
	if e.session == nil || !e.stage.Decides() {
		return ErrPhase
	}
	if len(key) == 0 || len(key)+len(value) > maxTagBytes {
		return ErrRange
	}
	n := e.tags
	for _, t := range *e.tagList() {
		if t.Filter == e.filter {
			n++
		}
	}
	if n >= maxTags {
		return fmt.Errorf("%w: tags", ErrTooMuch)
	}
	e.tags++
	e.log = append(e.log, Edit{Kind: EditTag, Name: key, Value: value})
	return nil
}

// tagList returns the list that tags go to.
func (e *Edits) tagList() *[]Tag {
	if e.tx != nil {
		return &e.tx.Tags
	}
	return &e.session.Tags
}

// check returns an error wrapping ErrVerdict if the edits do not go with v. Mail
// without recipients would be answered with 250 and be lost.
func (e *Edits) check(v Verdict) error {
	if v.Final() && v.Action != Accept || !e.ownRcpts || len(e.rcpts) > 0 || len(e.tx.Rcpts) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s with no recipient left", ErrVerdict, v.Action)
}

// apply makes the edits count. It changes no slice in place: who copied the
// transaction, to ask another chain about it, keeps what it had.
func (e *Edits) apply() {
	if len(e.log) == 0 {
		return
	}
	if e.tags > 0 {
		tags := e.tagList()
		*tags = append(make([]Tag, 0, len(*tags)+e.tags), *tags...)
		for _, l := range e.log {
			if l.Kind == EditTag {
				*tags = append(*tags, Tag{Filter: e.filter, Key: l.Name, Value: l.Value})
			}
		}
	}
	e.applyScores()
	if e.tx != nil {
		utf8 := e.sender.UTF8 || e.needsUTF8()
		e.judge()
		e.applyWay()
		e.tx.Message, e.tx.Sender, e.tx.Rcpts = e.message, *e.sender, slices.Clip(e.rcpts)
		e.tx.Sender.UTF8 = utf8
	}
}

// needsUTF8 tells whether the envelope can be sent only with SMTPUTF8 (RFC 6531): a
// filter may have put an address into it that the client could not have named.
func (e *Edits) needsUTF8() bool {
	if e.envelopeOps == 0 {
		return false
	}
	for _, r := range e.rcpts {
		if r.Path.NeedsUTF8() {
			return true
		}
	}
	return e.sender.Path.NeedsUTF8()
}
