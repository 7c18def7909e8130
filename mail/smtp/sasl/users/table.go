package users

import (
	"bytes"
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/penstock/penstock/mail/smtp/sasl"
)

// table.go reads the text of a file into a table that is never changed.

// maxLine bounds a line in octets: a name and the longest password in clear.
const maxLine = 2048

// A Problem is what is wrong with one line of a file. Open, Reload and the functions that
// edit join as many as there are.
type Problem struct {
	File string
	Line int    // from 1
	Text string // never holds a hash or a password
}

// Error returns "file:line: text".
func (p *Problem) Error() string { return fmt.Sprintf("%s:%d: %s", p.File, p.Line, p.Text) }

// account is all lines of one name.
type account struct {
	hashes map[Scheme]hash
	// derived gives SCRAM keys to a password in clear, at its first use; nil if there is
	// none. It takes as long as a hash.
	derived func() (sasl.SCRAMKeys, error)
}

// password is the line that passwords are checked against.
func (a *account) password() hash {
	for _, s := range Schemes() {
		if h, ok := a.hashes[s]; ok {
			return h
		}
	}
	return nil
}

// can tells whether the name can use a mechanism.
func (a *account) can(mechanism string) bool {
	_, keys := a.hashes[SCRAM]
	_, plain := a.hashes[Clear]
	switch mechanism {
	case sasl.SCRAMSHA256, sasl.SCRAMSHA256Plus:
		return keys || plain
	case sasl.CRAMMD5:
		return plain
	case sasl.Plain, sasl.Login, sasl.External:
		return true
	}
	return false
}

// table is a file as it was read.
type table struct {
	accounts map[string]*account
	decoy    hash   // stands in for users that do not exist; nil if there is none at all
	secret   []byte // for the salts that these have with SCRAM
	rounds   int    // and their iterations
}

// line is a line of a file in its parts.
type line struct {
	name   string // empty: a comment or an empty line
	scheme Scheme
	hash   hash
}

// parseLine reads one line without its end.
func parseLine(text string) (line, error) {
	text = strings.TrimSpace(text)
	if text == "" || text[0] == '#' {
		return line{}, nil
	}
	if len(text) > maxLine {
		return line{}, fmt.Errorf("longer than %d octets", maxLine)
	}
	name, rest, ok := strings.Cut(text, ":")
	if !ok {
		return line{}, errors.New("no colon; a line is name:hash")
	}
	if prepared, err := sasl.PrepareName(name); err != nil || prepared != name {
		return line{}, errors.New("the name is empty, too long, or not in the form in which names are compared")
	}
	scheme, h, err := parseHash(rest)
	return line{name, scheme, h}, err
}

// parse reads a whole file. The error joins values of *Problem.
func parse(file string, data []byte) (*table, error) {
	t := &table{accounts: make(map[string]*account)}
	var errs []error
	first := make(map[string]int) // line by name and scheme
	n := 0
	for raw := range bytes.Lines(bytes.TrimPrefix(data, []byte("\ufeff"))) {
		n++
		l, err := parseLine(string(raw))
		if err != nil {
			errs = append(errs, &Problem{file, n, err.Error()})
			continue
		}
		if l.name == "" {
			continue
		}
		key := string(l.scheme) + ":" + l.name
		if first[key] != 0 {
			errs = append(errs, &Problem{file, n, fmt.Sprintf("%q has a second line of %s, the first is line %d", l.name, l.scheme, first[key])})
			continue
		}
		first[key] = n
		t.add(l)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	t.secret = decoySecret(data)
	t.finish()
	return t, nil
}

func (t *table) add(l line) {
	a := t.accounts[l.name]
	if a == nil {
		a = &account{hashes: make(map[Scheme]hash)}
		t.accounts[l.name] = a
	}
	a.hashes[l.scheme] = l.hash
}

// finish chooses the decoys: a user that does not exist costs what most others cost.
func (t *table) finish() {
	costs, rounds := make(map[string]int), make(map[int]int)
	for _, name := range slices.Sorted(maps.Keys(t.accounts)) {
		a := t.accounts[name]
		costs[a.password().cost()]++
		if k, ok := a.hashes[SCRAM].(scramHash); ok {
			rounds[k.Iterations]++
		}
	}
	t.rounds = cmp.Or(most(rounds), sasl.DefaultIterations)
	usual := most(costs)
	for name, a := range t.accounts {
		if h := a.password(); t.decoy == nil && h.cost() == usual {
			t.decoy = h
		}
		plain, ok := a.hashes[Clear].(clearHash)
		if !ok {
			continue
		}
		salt := hmacSum(t.secret, "salt "+name)[:sasl.SaltSize]
		a.derived = sync.OnceValues(func() (sasl.SCRAMKeys, error) {
			return sasl.DeriveSCRAMKeys(string(plain), salt, t.rounds)
		})
	}
}

// most returns the key with the largest count, the smallest of several.
func most[K cmp.Ordered](counts map[K]int) (best K) {
	n := 0
	for _, k := range slices.Sorted(maps.Keys(counts)) {
		if counts[k] > n {
			best, n = k, counts[k]
		}
	}
	return best
}

// decoySecret makes a secret of the first hash of a file. So it outlives restarts, is the
// same on all machines that have the file, and stays when users are added. A user knows no
// more than its own line, and only the first could know this one.
func decoySecret(data []byte) []byte {
	for raw := range bytes.Lines(data) {
		if l, err := parseLine(string(raw)); err == nil && l.name != "" {
			return hmacSum([]byte("decoy"), strings.TrimSpace(string(raw)))
		}
	}
	return hmacSum([]byte("decoy"), "")
}

func hmacSum(key []byte, text string) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(text))
	return mac.Sum(nil)
}

// without returns the names that cannot use a mechanism, sorted.
func (t *table) without(mechanism string) []string {
	var names []string
	for name, a := range t.accounts {
		if !a.can(mechanism) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
