package gateway

import (
	"bufio"
	"fmt"
	"io"
	"strings"

	"github.com/penstock/penstock/mail/smtp"
)

// senders.go reads a list of the addresses that users may send from:
//
//	# user: addresses
//	ann: ann@example.com sales@example.com
//	shop: @shop.example.com
//	backup: *

// SenderList says which addresses users may send from. It is immutable, and safe for
// concurrent use.
type SenderList struct {
	users map[string]*ownAddresses // by the name in lower case
}

type ownAddresses struct {
	all     bool
	exact   map[string]struct{} // lower case
	domains map[smtp.Domain]struct{}
}

const (
	// maxSenders is how many entries a list may have, and maxSenderLine is for one line.
	maxSenders    = 1_000_000
	maxSenderLine = 64 << 10
)

// ParseSenders reads a list. A line is a user's name, a colon, and what the user may send from,
// with spaces between: addresses, "@example.com" for all of a domain, "*" for all there are.
// Several lines of a user count together; "#" begins a comment, and case makes no difference.
// The error names the line.
func ParseSenders(r io.Reader) (*SenderList, error) {
	l := &SenderList{users: make(map[string]*ownAddresses)}
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 4096), maxSenderLine)
	entries := 0
	for n := 1; s.Scan(); n++ {
		line, _, _ := strings.Cut(s.Text(), "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		// The name of a user may hold a colon, an address here may not.
		user, list, ok := cutLast(line, ":")
		if user = strings.TrimSpace(user); !ok || user == "" {
			return nil, fmt.Errorf("line %d: want a user's name, a colon and addresses", n)
		}
		for word := range strings.FieldsSeq(list) {
			if entries++; entries > maxSenders {
				return nil, fmt.Errorf("line %d: more than %d entries", n, maxSenders)
			}
			if err := l.add(strings.ToLower(user), word); err != nil {
				return nil, fmt.Errorf("line %d: %w", n, err)
			}
		}
	}
	if err := s.Err(); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *SenderList) add(user, word string) error {
	own := l.users[user]
	if own == nil {
		own = &ownAddresses{exact: make(map[string]struct{}), domains: make(map[smtp.Domain]struct{})}
		l.users[user] = own
	}
	if word == "*" {
		own.all = true
		return nil
	}
	local, domain, ok := cutLast(word, "@")
	d, err := smtp.ParseDomain(domain)
	switch {
	case !ok:
		return fmt.Errorf("%q is neither an address, nor @ and a domain, nor *", word)
	case err != nil:
		return fmt.Errorf("%q: %w", word, err)
	case local == "":
		own.domains[d] = struct{}{}
	default:
		own.exact[strings.ToLower(local)+"@"+d.String()] = struct{}{}
	}
	return nil
}

// MaySend tells whether a user may send from an address.
func (l *SenderList) MaySend(user string, from smtp.Path) bool {
	own := l.users[strings.ToLower(user)]
	if own == nil {
		return false
	}
	_, domain := own.domains[from.Domain]
	_, exact := own.exact[strings.ToLower(from.Local)+"@"+from.Domain.String()]
	return own.all || domain || exact
}

// Users returns how many users the list has.
func (l *SenderList) Users() int { return len(l.users) }
