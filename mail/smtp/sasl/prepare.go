package sasl

import (
	"errors"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/runes"
	"golang.org/x/text/secure/precis"
	"golang.org/x/text/transform"
	"golang.org/x/text/unicode/norm"
)

// prepare.go brings names and passwords into one form, so that the same characters typed on
// two keyboards are the same octets. RFC 4616 and RFC 5802 ask for SASLprep (RFC 4013),
// which knows no characters younger than 2002. We take the free-form class of its
// successor (RFC 8264, Section 4.3) with what SASLprep shares with it: compatibility
// normalisation, and all spaces being one. For what people type the two agree.

// Limits, in octets.
const (
	MaxName     = 255   // a user name or an authorization identity
	MaxPassword = 1024  // a password
	MaxToken    = 16384 // a token
)

var (
	errEmpty   = errors.New("sasl: empty name or password")
	errLong    = errors.New("sasl: name or password too long")
	errControl = errors.New("sasl: control character in a name or password")
)

// PrepareName returns a user name in the form in which it is compared. Letters keep their
// case. It refuses what is empty, longer than MaxName, not UTF-8, or holds control
// characters or others that have no place in text (RFC 8264, Section 4.3). The error does
// not hold the name.
func PrepareName(name string) (string, error) { return prepare(name, MaxName) }

// PreparePassword returns a password in the form in which it is hashed, by the rules of
// PrepareName and up to MaxPassword.
func PreparePassword(password string) (string, error) { return prepare(password, MaxPassword) }

func prepare(s string, limit int) (string, error) {
	switch {
	case s == "":
		return "", errEmpty
	case len(s) > limit:
		return "", errLong
	}
	if ascii, control := inspect(s); control {
		return "", errControl
	} else if ascii {
		return s, nil // nothing to map
	}
	// The profile would make a replacement character of what is not UTF-8.
	prepared, err := profile().String(s)
	switch {
	case err != nil || !utf8.ValidString(s):
		return "", errors.New("sasl: name or password holds characters that are not for text")
	case len(prepared) > limit:
		return "", errLong // one character may become eighteen
	}
	return prepared, nil
}

// inspect tells whether s is ASCII, and whether it has control characters of ASCII.
func inspect(s string) (ascii, control bool) {
	ascii = true
	for i := range len(s) {
		ascii = ascii && s[i] < 0x80
		control = control || s[i] < ' ' || s[i] == 0x7f
	}
	return ascii, control
}

// profile makes the rules anew for each string: the type does not promise that one may be
// shared between goroutines.
func profile() *precis.Profile {
	spaces := func() transform.Transformer {
		return runes.Map(func(r rune) rune {
			if unicode.Is(unicode.Zs, r) {
				return ' '
			}
			return r
		})
	}
	return precis.NewFreeform(precis.AdditionalMapping(spaces), precis.Norm(norm.NFKC), precis.DisallowEmpty)
}
