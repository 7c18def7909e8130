// App-password is a filter that decides about logins. README.md beside it says when to use
// one.
package main

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"

	"github.com/penstock/penstock/guest-sdk/filter"
)

func main() {}

func init() { newFilter().Serve() }

// newFilter returns the filter; main_test.go runs it natively.
func newFilter() *filter.Filter {
	f := filter.New("app-password")
	digests := map[string]string{} // of the password, by user
	f.Configure(func(c filter.Config) error {
		c.Only("digests")
		users := c.Sub("digests")
		for _, name := range users.Keys() {
			digests[name] = users.String(name)
		}
		return c.Err()
	})

	// Nobody is let in but by Accept: to return without an answer is to have no opinion.
	f.OnAuth(func(w filter.Reply, e *filter.AuthEvent) {
		password, ok := e.Password()
		if !ok {
			return // a token, or the operator lets others decide about logins
		}
		sum := sha256.Sum256([]byte(password))
		digest := hex.EncodeToString(sum[:])
		asThemself := e.Authz() == "" || e.Authz() == e.Login()
		if subtle.ConstantTimeCompare([]byte(digest), []byte(digests[e.Login()])) == 1 && asThemself {
			w.Accept()
			return
		}
		w.Reject(0, "", "") // 535 5.7.8
	})
	return f
}
