package config

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// words.go holds values that are more than a word out of a list and less than a mapping.

// ListenAddresses is one address or a list of them.
type ListenAddresses []ListenAddress

// oneOrMore lets one word stand for a list of that word.
func (ListenAddresses) oneOrMore() {}

// A Rate is so many in a time, written 60/1m; off, which is the zero Rate written out, has
// a negative count.
type Rate struct {
	Count int
	Per   time.Duration
}

// UnmarshalText reads COUNT/DURATION or off.
func (r *Rate) UnmarshalText(text []byte) error {
	if string(text) == "off" {
		*r = Rate{Count: -1}
		return nil
	}
	count, per, ok := strings.Cut(string(text), "/")
	n, err := parseCount(count)
	if err == nil && ok {
		r.Count = n
		r.Per, err = ParseDuration(per)
	}
	if err != nil || !ok || n == 0 || r.Per <= 0 {
		return fmt.Errorf("%s is not a rate: write a number and a time, such as 60/1m, or off", quote(string(text)))
	}
	return nil
}

// Off tells whether there is no limit.
func (r Rate) Off() bool { return r.Count <= 0 }

func (Rate) describe() string { return "rate or off" }

// A Pause is a duration, or off, which is negative.
type Pause time.Duration

// UnmarshalText reads a duration or off.
func (p *Pause) UnmarshalText(text []byte) error {
	if string(text) == "off" {
		*p = -1
		return nil
	}
	d, err := ParseDuration(string(text))
	*p = Pause(d)
	return err
}

func (Pause) describe() string { return "duration or off" }

// A FileMode is the permissions of a file.
type FileMode fs.FileMode

// UnmarshalText reads an octal number of three digits, with or without a zero in front.
func (m *FileMode) UnmarshalText(text []byte) error {
	n, err := strconv.ParseUint(string(text), 8, 9)
	if err != nil || n == 0 {
		return fmt.Errorf("%s is not a mode: write three octal digits, such as 660", quote(string(text)))
	}
	*m = FileMode(n)
	return nil
}

func (FileMode) describe() string { return "octal mode" }

// Senders says which addresses users may send from. One of its fields is set, or none, which
// is the same as Any.
type Senders struct {
	Own, Any bool
	File     string
}

// UnmarshalText reads own, any or file:PATH.
func (s *Senders) UnmarshalText(text []byte) error {
	path, isFile := strings.CutPrefix(string(text), "file:")
	switch {
	case string(text) == "own":
		s.Own = true
	case string(text) == "any":
		s.Any = true
	case isFile && path != "":
		s.File = filepath.Clean(path)
	default:
		return fmt.Errorf("%s is none of own, any and file:PATH", quote(string(text)))
	}
	return nil
}

func (Senders) describe() string { return "own, any or file:PATH" }

func (s *Senders) rebase(dir string) {
	if s.File != "" {
		s.File = inDir(dir, s.File)
	}
}

// Users says who decides about logins. One of its fields is set, or none.
type Users struct {
	File    string
	Backend string
	Filter  bool
}

// UnmarshalText reads file:PATH, backend:NAME or filter.
func (u *Users) UnmarshalText(text []byte) error {
	t := string(text)
	path, isFile := strings.CutPrefix(t, "file:")
	name, isBackend := strings.CutPrefix(t, "backend:")
	switch {
	case t == "filter":
		u.Filter = true
	case isFile && path != "":
		u.File = filepath.Clean(path)
	case isBackend && name != "":
		u.Backend = name
	default:
		return fmt.Errorf("%s is none of file:PATH, backend:NAME and filter", quote(t))
	}
	return nil
}

func (Users) describe() string { return "file:PATH, backend:NAME or filter" }

func (u *Users) rebase(dir string) {
	if u.File != "" {
		u.File = inDir(dir, u.File)
	}
}

// Recipients says who decides whether a recipient exists: by one of the words below, or by
// a list in File.
type Recipients struct {
	Word RecipientsWord
	File string
}

// A RecipientsWord is one of the ways that need no file.
type RecipientsWord string

// Who decides whether a recipient exists: the backend when asked at RCPT, the backend
// when asked before, or nobody.
const (
	RecipientsPass    RecipientsWord = "pass"
	RecipientsCallout RecipientsWord = "callout"
	RecipientsAccept  RecipientsWord = "accept"
)

// UnmarshalText reads a word or file:PATH.
func (r *Recipients) UnmarshalText(text []byte) error {
	t := string(text)
	words := []string{string(RecipientsPass), string(RecipientsCallout), string(RecipientsAccept)}
	path, isFile := strings.CutPrefix(t, "file:")
	switch {
	case isFile && path != "":
		r.File = filepath.Clean(path)
	case slices.Contains(words, t):
		r.Word = RecipientsWord(t)
	default:
		near := ""
		if n, ok := nearest(t, words); ok {
			near = fmt.Sprintf("; did you mean %q?", n)
		}
		return fmt.Errorf("must be pass, callout, accept or file:PATH, not %s%s", quote(t), near)
	}
	return nil
}

func (Recipients) describe() string { return "pass, callout, accept or file:PATH" }

func (r *Recipients) rebase(dir string) {
	if r.File != "" {
		r.File = inDir(dir, r.File)
	}
}
