package auth

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/emersion/go-msgauth/dkim"

	"github.com/penstock/penstock/mail/message"
	"github.com/penstock/penstock/mail/smtp"
)

// sign.go: signatures. The content is read once, whatever its size and however many keys
// there are; of the header the signed fields are kept, of the body nothing.

// Key signs for a domain.
type Key struct {
	// Domain is whose mail is signed, and Selector the name of the key below it: the record is
	// at Selector._domainkey.Domain.
	Domain   smtp.Domain
	Selector string
	Signer   crypto.Signer
}

// Signer signs messages with the keys of their domains. Its methods are safe for concurrent
// use. The zero Signer has no keys.
type Signer struct {
	keys atomic.Pointer[map[smtp.Domain][]Key]
}

// NewSigner returns a Signer with these keys. The errors are those of Use.
func NewSigner(keys []Key) (*Signer, error) {
	s := new(Signer)
	if err := s.Use(keys); err != nil {
		return nil, err
	}
	return s, nil
}

// Use takes other keys, for all messages from now on. The error joins all problems; the keys
// stay as they were then.
func (s *Signer) Use(keys []Key) error {
	byDomain := make(map[smtp.Domain][]Key)
	var errs []error
	for _, k := range keys {
		if err := k.validate(); err != nil {
			errs = append(errs, fmt.Errorf("auth: key %s of %s: %w", k.Selector, k.Domain, err))
		}
		if slices.ContainsFunc(byDomain[k.Domain], func(o Key) bool { return o.Selector == k.Selector }) {
			errs = append(errs, fmt.Errorf("auth: key %s of %s: there are two", k.Selector, k.Domain))
		}
		byDomain[k.Domain] = append(byDomain[k.Domain], k)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	s.keys.Store(&byDomain)
	return nil
}

func (k Key) validate() error {
	if k.Domain.IsLiteral() || k.Domain == (smtp.Domain{}) {
		return errors.New("it needs a domain name")
	}
	if d, err := smtp.ParseDomain(k.Selector); err != nil || d.String() != k.Selector {
		return errors.New("a selector is letters in lower case, digits and hyphens")
	}
	if k.Signer == nil {
		return ErrKey
	}
	_, err := Record(k.Signer.Public())
	return err
}

// keysOf returns the keys of a domain, or else of the nearest domain above it that has some: a
// signature of example.com counts for mail from mx.example.com (RFC 7489, Section 3.1.1).
func (s *Signer) keysOf(domain smtp.Domain) []Key {
	byDomain := s.keys.Load()
	if byDomain == nil || len(*byDomain) == 0 || domain.IsLiteral() {
		return nil
	}
	for name := domain.String(); name != ""; _, name, _ = strings.Cut(name, ".") {
		if d, err := smtp.ParseDomain(name); err == nil && len((*byDomain)[d]) > 0 {
			return (*byDomain)[d]
		}
	}
	return nil
}

// ErrUnsignable: a message has no header that all readers would read alike: it does not end
// with an empty line, is too long, has too many fields, or no field From or two.
var ErrUnsignable = errors.New("auth: message cannot be signed")

// Sign returns the signatures of a message whose author is at domain, one for each key, as
// fields that go on top of it; none if no key is for that domain. The content must be in lines
// that end with CRLF, as smtp.Content is. An error is ErrUnsignable, or that of the content,
// of a key, or of ctx.
func (s *Signer) Sign(ctx context.Context, domain smtp.Domain, content smtp.Content) ([]message.Field, error) {
	keys := s.keysOf(domain)
	if len(keys) == 0 {
		return nil, nil
	}
	w := &signing{ctx: ctx, keys: keys}
	_, err := content.WriteTo(w)
	fields, closeErr := w.close(err == nil)
	if err = errors.Join(err, closeErr); err != nil {
		return nil, fmt.Errorf("auth: sign: %w", err)
	}
	return fields, nil
}

// maxHeader is the largest header section that is signed. Listeners take no larger one unless
// told to.
const maxHeader = 4 << 20

// maxSigned is how many fields are signed. To find them takes time with the square of their
// number.
const maxSigned = 1000

// signing is a message that is being signed: an io.Writer of its content.
type signing struct {
	ctx    context.Context
	keys   []Key
	header []byte // until its end has been seen
	end    message.EndFinder
	signs  []*dkim.Signer // from then on
	body   io.Writer
}

// Write implements io.Writer.
func (s *signing) Write(b []byte) (n int, err error) {
	if s.ctx.Err() != nil {
		return 0, context.Cause(s.ctx)
	}
	for s.body == nil && n < len(b) {
		piece := b[n:min(n+headerPiece, len(b))] // or a body would be kept that comes with the header
		s.header = append(s.header, piece...)
		n += len(piece)
		if size, ok := s.end.End(s.header); ok {
			if err := s.begin(s.header[:size], s.header[size:]); err != nil {
				return n, err
			}
			s.header = nil
		} else if len(s.header) > maxHeader {
			return n, fmt.Errorf("%w: its header is too long", ErrUnsignable)
		}
	}
	if n == len(b) {
		return n, nil
	}
	m, err := s.body.Write(b[n:])
	return n + m, err
}

const headerPiece = 4 << 10

// begin makes the signers, of which each gets the header now, and what came of the body.
func (s *signing) begin(section, body []byte) error {
	if text := string(section[max(0, len(section)-4):]); text != "\r\n\r\n" {
		return fmt.Errorf("%w: its header has no end", ErrUnsignable)
	}
	h, _ := message.Parse(section)
	names, fields := signed(h)
	if h.Count("From") != 1 {
		return fmt.Errorf("%w: it has no field From, or two", ErrUnsignable)
	}
	if len(names) > maxSigned {
		return fmt.Errorf("%w: more than %d fields would have to be", ErrUnsignable, maxSigned)
	}
	var writers []io.Writer
	for _, k := range s.keys {
		sign, err := dkim.NewSigner(&dkim.SignOptions{
			Domain: k.Domain.String(), Selector: k.Selector, Signer: k.Signer, Hash: crypto.SHA256, HeaderKeys: names,
			HeaderCanonicalization: dkim.CanonicalizationRelaxed, BodyCanonicalization: dkim.CanonicalizationRelaxed,
		})
		if err != nil {
			return err
		}
		s.signs = append(s.signs, sign)
		writers = append(writers, sign)
	}
	s.body = io.MultiWriter(writers...)
	_, err := s.body.Write(append(fields, body...))
	return err
}

// close ends the signers, and returns the signatures if the content is whole.
func (s *signing) close(whole bool) (fields []message.Field, err error) {
	if whole && s.body == nil {
		return nil, fmt.Errorf("%w: its header has no end", ErrUnsignable)
	}
	var errs []error
	for _, sign := range s.signs {
		if err := sign.Close(); err != nil { // ends its goroutine in any case
			errs = append(errs, err)
		} else if whole {
			h, _ := message.Parse([]byte(sign.Signature() + "\r\n"))
			fields = append(fields, h.Field(0))
		}
	}
	return fields, errors.Join(errs...)
}

// once are fields that may stand in a message once (RFC 5322, Section 3.6; RFC 2045, Section
// 3) and that are seen by a person, or say how the body is read.
func once() []string {
	return []string{"From", "Sender", "Reply-To", "To", "Cc", "Subject", "Date", "Message-ID", "In-Reply-To", "References",
		"MIME-Version", "Content-Type", "Content-Transfer-Encoding", "Content-Disposition", "Content-ID", "Content-Description"}
}

// absent are those of once that are signed although they are not there: who has a message of ours
// could give it a subject, other recipients or another address for answers, or have its text read
// as HTML, and send it on under our name. Fields that servers on the way, or lists, may rightly add
// are not among them.
func absent() []string { return []string{"From", "Reply-To", "To", "Cc", "Subject", "Content-Type"} }

// others are signed as often as they are there. RFC 6376, Section 5.4.1; RFC 8058, Section 4;
// RFC 8689, Section 3; RFC 8460, Section 5.3.
func others() []string {
	return []string{"List-Id", "List-Help", "List-Unsubscribe", "List-Unsubscribe-Post", "List-Subscribe", "List-Post", "List-Owner", "List-Archive",
		"Auto-Submitted", "TLS-Required", "TLS-Report-Domain", "TLS-Report-Submitter"}
}

// signed returns the names that a signature lists, and the fields in the form in which they are
// handed to the signer: each on a line, which is the same to the relaxed canonicalization (RFC
// 6376, Section 3.4.2), so that fields of a hundred thousand lines cost no more than others.
func signed(h message.Header) (names []string, fields []byte) {
	counts := make(map[string]int)
	for i := range h.Len() {
		counts[strings.ToLower(string(h.Field(i).Name()))]++
	}
	for _, name := range once() {
		if n := counts[strings.ToLower(name)]; n > 0 || slices.Contains(absent(), name) {
			names = append(names, slices.Repeat([]string{name}, n+1)...)
		}
	}
	for _, name := range others() {
		names = append(names, slices.Repeat([]string{name}, counts[strings.ToLower(name)])...)
	}
	listed := make(map[string]bool)
	for _, name := range names {
		listed[strings.ToLower(name)] = true
	}
	for i := range h.Len() {
		f := h.Field(i)
		name := strings.ToLower(string(f.Name()))
		if !listed[name] {
			continue
		}
		fields = append(append(fields, name...), ':')
		for _, c := range f.Value() {
			if c != '\r' && c != '\n' {
				fields = append(fields, c)
			}
		}
		fields = append(fields, "\r\n"...)
	}
	return names, append(fields, "\r\n"...)
}
