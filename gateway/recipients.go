package gateway

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"log/slog"
	"math/bits"
	"os"
	"strings"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/penstock/penstock/mail/smtp"
)

// recipients.go knows recipients from a file.
//
// The file has one address a line; `@example.com` stands for all of a domain, "#" begins
// a comment, and what is quoted is written as in SMTP: "john doe"@example.com. It is read
// again when it has changed and lain still for a moment, since half of a list would turn
// the other half away for good. For the same reason a file with a line that is no address
// and one without any address change nothing: the list that was good stays.
//
// In memory a list is the addresses one behind the other, and a hash table of where they
// begin: without pointers, and in about the size of the file.
//
// Wiring: one recipientList per ListOptions; see known.go, which runs run and waits for it.
// check is asked at RCPT, its error is the answer.

// recipientFile says where a list is and how to read it. The zero value of each field but
// path means its default.
type recipientFile struct {
	path string
	// caseSensitive makes "Ann" and "ann" two local parts. They are one by default. Domains
	// have no case.
	caseSensitive bool
	// separators are the characters that may begin a subaddress (RFC 5233): with "+" the
	// entry ann@example.com also stands for ann+books@example.com. Default: none.
	separators string
	// size is the largest file in octets. Default 256 MiB.
	size int64
	// interval is how often to look whether the file has changed. Default 30 s.
	interval time.Duration
	log      *slog.Logger // nil discards
}

const (
	defaultRecipientFile = 256 << 20
	defaultRecipientLook = 30 * time.Second
	// settled is how long a file must not have changed to be read again.
	settled = 2 * time.Second
	// maxRecipientLine is for one line; an address has 254 octets, in U-labels somewhat
	// more.
	maxRecipientLine = 2048
)

// recipientList is a list that follows its file. It is safe for concurrent use.
type recipientList struct {
	recipientFile
	set  atomic.Pointer[addressSet]
	soon chan struct{} // has room for one: run is to look at once
	// What follows is run's own.
	seen fs.FileInfo // of the file that was read or refused last; nil: it was not there
	gone bool        // it was not there, and that was said
	bad  bool        // the last look found no good file
}

// newRecipientList reads the list for the first time.
func newRecipientList(f recipientFile) (*recipientList, error) {
	if f.size <= 0 {
		f.size = defaultRecipientFile
	}
	if f.interval <= 0 {
		f.interval = defaultRecipientLook
	}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	l := &recipientList{recipientFile: f, soon: make(chan struct{}, 1)}
	set, info, err := l.read()
	if err != nil {
		return nil, fmt.Errorf("gateway: recipients: %w", err)
	}
	l.set.Store(set)
	l.seen = info
	return l, nil
}

// run follows the file until ctx ends. It is called once.
func (l *recipientList) run(ctx context.Context) {
	t := time.NewTimer(l.interval)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-l.soon:
			if l.bad { // and somebody is there who wants to know
				l.seen, l.gone = nil, false
			}
		case <-ctx.Done():
			return
		}
		wait := l.interval
		if !l.look(time.Now()) {
			wait = min(settled, wait)
		}
		t.Reset(wait)
	}
}

// hurry has run look at the file at once, and say again what is wrong with it.
func (l *recipientList) hurry() {
	select {
	case l.soon <- struct{}{}:
	default: // it will
	}
}

// look reads the file again if it has changed. It returns false if the file must lie still
// first.
func (l *recipientList) look(now time.Time) bool {
	info, err := os.Stat(l.path)
	if err != nil {
		if !l.gone {
			l.log.Error("recipients cannot be read, the old ones stay", "err", err)
		}
		l.seen, l.gone, l.bad = nil, true, true
		return true
	}
	l.gone = false
	if sameFile(l.seen, info) {
		return true
	}
	if age := now.Sub(info.ModTime()); 0 <= age && age < settled {
		return false
	}
	set, read, err := l.read()
	if errors.Is(err, errChanging) {
		return false
	}
	if l.seen = info; read != nil {
		l.seen = read
	}
	if l.bad = err != nil; l.bad {
		l.log.Error("recipients cannot be read, the old ones stay", "err", err)
		return true
	}
	l.set.Store(set)
	l.log.Info("recipients were read", "file", l.path, "count", set.n)
	return true
}

// sameFile tells whether two looks found the same.
func sameFile(a, b fs.FileInfo) bool {
	return a != nil && b != nil && os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size()
}

// errChanging is the error of a file that changed while it was read.
var errChanging = errors.New("the file changed while it was read")

// read reads the file, and tells what file that was if it could be opened.
func (l *recipientList) read() (*addressSet, fs.FileInfo, error) {
	f, err := os.Open(l.path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	before, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if !before.Mode().IsRegular() {
		return nil, before, fmt.Errorf("%s is not a file", l.path)
	}
	if before.Size() > l.size {
		return nil, before, fmt.Errorf("%s is larger than %d octets", l.path, l.size)
	}
	set, err := l.parse(io.LimitReader(f, before.Size()), int(before.Size()))
	if after, statErr := f.Stat(); statErr != nil || !sameFile(before, after) {
		return nil, before, fmt.Errorf("%s: %w", l.path, errChanging)
	}
	if err != nil {
		return nil, before, fmt.Errorf("%s: %w", l.path, err)
	}
	return set, before, nil
}

// parse reads the lines of a list of about size octets.
func (l *recipientFile) parse(r io.Reader, size int) (*addressSet, error) {
	set := newAddressSet(size)
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 4096), maxRecipientLine)
	n := 0
	for s.Scan() {
		n++
		if err := l.parseLine(set, s.Text()); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("line %d: %w", n+1, err)
	}
	if set.n == 0 {
		return nil, errors.New("no address in it")
	}
	set.done()
	return set, nil
}

// byteOrderMark is what some editors put in front of UTF-8.
const byteOrderMark = "\ufeff"

func (l *recipientFile) parseLine(set *addressSet, line string) error {
	line = strings.TrimSpace(strings.TrimPrefix(line, byteOrderMark))
	if line == "" || line[0] == '#' {
		return nil
	}
	var p smtp.Path
	var err error
	// A comment may follow an address, behind a space: "#" may stand in a local part.
	address, rest := cutAddress(line)
	switch {
	case rest != "" && rest[0] != '#':
		err = errors.New("something follows the address")
	case address[0] == '@':
		p.Domain, err = smtp.ParseDomain(address[1:])
	default:
		p, err = smtp.ParseAddress(address)
	}
	if err != nil {
		return err
	}
	var buf [keySize]byte
	return set.add(l.key(buf[:0], p.Local, p.Domain))
}

// cutAddress splits a line behind the address, which ends at a space that is not quoted.
func cutAddress(line string) (address, rest string) {
	quoted := false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case c == '\\' && quoted:
			i++
		case c == '"':
			quoted = !quoted
		case (c == ' ' || c == '\t') && !quoted:
			return line[:i], strings.TrimSpace(line[i:])
		}
	}
	return line, ""
}

// keySize holds every key without allocating: an address, which folding may make longer.
const keySize = 512

// key appends what an address is found by. An empty local part stands for the domain.
func (l *recipientFile) key(b []byte, local string, d smtp.Domain) []byte {
	if l.caseSensitive {
		b = append(b, local...)
	} else {
		for _, r := range local {
			b = utf8.AppendRune(b, unicode.ToLower(r))
		}
	}
	b = append(b, '@')
	return append(b, d.String()...)
}

// errUnknownRecipient is the answer of a list. It tells nothing but what it must.
func errUnknownRecipient() error {
	return smtp.Refuse(550, smtp.Enhanced{5, 1, 1}, "no such recipient here")
}

// check returns nil if the list has the address, or what to tell the client: 550 5.1.1.
// <postmaster> without a domain is always there (RFC 5321, Section 4.5.1).
func (l *recipientList) check(p smtp.Path) error {
	if p.Domain.IsZero() && strings.EqualFold(p.Local, "postmaster") || l.has(p) {
		return nil
	}
	return errUnknownRecipient()
}

func (l *recipientList) has(p smtp.Path) bool {
	set := l.set.Load()
	var buf [keySize]byte
	if set.has(l.key(buf[:0], p.Local, p.Domain)) {
		return true
	}
	// Not at 0: an address is not a subaddress of nobody.
	if i := strings.IndexAny(p.Local, l.separators); i > 0 && set.has(l.key(buf[:0], p.Local[:i], p.Domain)) {
		return true
	}
	return set.has(l.key(buf[:0], "", p.Domain))
}

// count is how many entries the list has.
func (l *recipientList) count() int { return l.set.Load().n }

// addressSet is a set of strings of up to 64 KiB. It is filled by one goroutine and then
// only read.
type addressSet struct {
	seed  maphash.Seed
	keys  []byte   // each behind two octets of its length
	index []uint32 // where a key is, plus 1; 0 is a free place
	n     int
}

// maxAddressSet is how many octets the keys may have, for their places to be counted.
const maxAddressSet = 1<<32 - 1<<17

// newAddressSet returns a set for about so many octets of keys.
func newAddressSet(size int) *addressSet {
	return &addressSet{seed: maphash.MakeSeed(), keys: make([]byte, 0, size+size/8), index: make([]uint32, 1024)}
}

func (s *addressSet) add(key []byte) error {
	if len(s.keys)+2+len(key) > maxAddressSet {
		return errors.New("too many addresses")
	}
	i, there := s.find(key)
	if there {
		return nil
	}
	s.index[i] = uint32(len(s.keys)) + 1
	s.keys = binary.BigEndian.AppendUint16(s.keys, uint16(len(key)))
	s.keys = append(s.keys, key...)
	if s.n++; s.n*4 > len(s.index)*3 {
		s.rehash(2 * len(s.index))
	}
	return nil
}

// done gives back memory that was only needed to grow.
func (s *addressSet) done() {
	s.keys = append(make([]byte, 0, len(s.keys)), s.keys...)
	if size := 1 << bits.Len(uint(s.n*3/2)); size < len(s.index) {
		s.rehash(size)
	}
}

func (s *addressSet) rehash(size int) {
	s.index = make([]uint32, size)
	for at := 0; at < len(s.keys); {
		key := s.at(at)
		i, _ := s.find(key)
		s.index[i] = uint32(at) + 1
		at += 2 + len(key)
	}
}

// at returns the key that begins at a place.
func (s *addressSet) at(at int) []byte {
	n := int(binary.BigEndian.Uint16(s.keys[at:]))
	return s.keys[at+2 : at+2+n]
}

// find returns the place of a key in the index, or the one where it belongs.
func (s *addressSet) find(key []byte) (i uint64, there bool) {
	mask := uint64(len(s.index) - 1)
	for i = maphash.Bytes(s.seed, key) & mask; s.index[i] != 0; i = (i + 1) & mask {
		if string(s.at(int(s.index[i]-1))) == string(key) {
			return i, true
		}
	}
	return i, false
}

func (s *addressSet) has(key []byte) bool {
	_, there := s.find(key)
	return there
}
