package archtest

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "tidegate"

// all stands for every package of ours.
const all = "*"

// mayImport says which packages of ours each package may import outside its tests (docs/architecture.md has the reasons).
// A package that is not listed here does not exist yet: it is entered when it is made.
var mayImport = map[string][]string{
	"message":          {},
	"message/envelope": {"message"},
	"config":           {},
	"buffer":           {},
	"access":           {"message", "config"},
	"certs":            {"config"},

	"forwarder":               {"message", "message/envelope", "config", "buffer", "forwarder/pipeline"},
	"forwarder/pipeline":      {"message", "config"},
	"forwarder/uplink":        {"message", "config"},
	"forwarder/uplink/simple": {"message", "config"},

	"edge":         {"message", "config", "access", "certs", "edge/gate", "edge/session", "edge/ws"},
	"edge/gate":    {},
	"edge/ws":      {},
	"edge/session": {"message", "buffer"},

	"bridges":            {"message"},
	"bridges/coap":       {"bridges", "message", "config", "access", "bridges/coap/wire"},
	"bridges/coap/wire":  {},
	"bridges/external":   {"bridges", "message", "config"},
	"bridges/opcua":      {"bridges", "message", "config", "access", "bridges/opcua/link"},
	"bridges/opcua/link": {},

	"admin":         {"message", "buffer", "config", "access", "certs", "admin/metrics"},
	"admin/metrics": {"message", "buffer"},

	"internal/demo":     {"message", "config"},
	"internal/testpeer": {"message", "config"},
	"internal/archtest": {},
	"test/e2e":          {},
	"cmd/tidegate":      {all},
}

// testsMayImport lists what the tests of a package may import of ours beside what the package itself may, and beside the
// package under test. The cloud broker that misbehaves is there for everybody.
var testsMayImport = map[string][]string{
	// The documentation's TOML blocks are read by the code that reads the user's file, and name certificates.
	"internal/archtest": {"config", "certs"},
	// Sessions are kept in a log.
	"edge": {"buffer"},
	// A consumer on the cloud side reads batches with it.
	"test/e2e": {"message/envelope"},
}

// owners says which packages (and their sub-packages) may import a third-party library, by the prefix of its path: each
// library has one owner, so that replacing it touches one place.
var owners = map[string][]string{
	"github.com/mochi-mqtt/server/v2":         {}, // only its codec
	"github.com/mochi-mqtt/server/v2/packets": {"edge", "forwarder/uplink", "bridges/external", "internal/testpeer"},
	"github.com/eclipse/paho.golang":          {"forwarder/uplink"},
	"github.com/eclipse/paho.mqtt.golang":     {"forwarder/uplink"},
	"github.com/klauspost/compress":           {"buffer", "message/envelope"},
	"github.com/pelletier/go-toml/v2":         {"config"},
	"github.com/plgd-dev/go-coap/v3":          {"bridges/coap", "internal/demo"},
	"github.com/gopcua/opcua":                 {"bridges/opcua", "internal/demo"},
	"github.com/gorilla/websocket":            {"forwarder/uplink", "edge/ws"},
	"golang.org/x/net/proxy":                  {"forwarder/uplink"},
	"golang.org/x/net/http/httpproxy":         {"forwarder/uplink"},
	"github.com/prometheus":                   {"edge", "forwarder", "admin", "bridges", "cmd/tidegate"},
	"github.com/xdg-go/scram":                 {"access"},
	"golang.org/x/crypto":                     {"access", "buffer"},
	"golang.org/x/sys":                        {"buffer"},
	"golang.org/x/term":                       {"cmd/tidegate"},
	"golang.org/x/sync":                       {all},
}

// notBelow takes a sub-package out of what its parent owns: pure stages and bytes have no metrics, the gate knows no broker.
var notBelow = map[string][]string{
	"github.com/mochi-mqtt/server/v2/packets": {"edge/gate"},
	"github.com/prometheus":                   {"forwarder/pipeline", "forwarder/uplink/simple", "edge/gate", "edge/ws"},
}

// testOwners says who may use a library in tests beside its owners: real clients are the peers of a broker's tests.
var testOwners = map[string][]string{
	// As a broker it is what its defects are shown on.
	"github.com/mochi-mqtt/server/v2":     {"edge"},
	"github.com/eclipse/paho.golang":      {"edge", "test/e2e"},
	"github.com/eclipse/paho.mqtt.golang": {"edge", "test/e2e"},
	"github.com/plgd-dev/go-coap/v3":      {"test/e2e"},
	"github.com/xdg-go/scram":             {"edge"},
	// A broker behind WebSocket, and the frames as another client of this library sees them.
	"github.com/gorilla/websocket": {"edge", "test/e2e"},
}

// neverImport forbids parts of the standard library where a package promises to stay pure.
var neverImport = map[string][]string{
	"forwarder/pipeline": {"net", "os", "io/fs"},
	"message":            {"net", "os"},
	"buffer":             {"net"},
	"config":             {"net/http"},
}

type goPackage struct {
	ImportPath, Dir                    string
	Imports, TestImports, XTestImports []string
	GoFiles, TestGoFiles, XTestGoFiles []string
}

// name is the path inside the module.
func (p goPackage) name() string { return local(p.ImportPath) }

func local(path string) string { return strings.TrimPrefix(strings.TrimPrefix(path, module), "/") }

func isOurs(path string) bool { return path == module || strings.HasPrefix(path, module+"/") }

func isStandard(path string) bool {
	first, _, _ := strings.Cut(path, "/")
	return !strings.Contains(first, ".") && !isOurs(path)
}

// packages lists every package of the module as `go list` sees it on this machine.
func packages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,Imports,TestImports,XTestImports,GoFiles,TestGoFiles,XTestGoFiles", "./...")
	cmd.Dir = root(t)
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	var list []goPackage
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
	if len(list) < 5 {
		t.Fatalf("go list found only %d packages", len(list))
	}
	return list
}

// within reports whether pkg is one of the named packages or below one.
func within(pkg string, names []string) bool {
	for _, n := range names {
		if n == all || pkg == n || strings.HasPrefix(pkg, n+"/") {
			return true
		}
	}
	return false
}

// ownerKey finds the longest entry of owners that covers a library path.
func ownerKey(path string) (string, bool) {
	best := ""
	for prefix := range owners {
		if (path == prefix || strings.HasPrefix(path, prefix+"/")) && len(prefix) > len(best) {
			best = prefix
		}
	}
	return best, best != ""
}

func TestEveryPackageIsInTheTable(t *testing.T) {
	var names []string
	for _, p := range packages(t) {
		names = append(names, p.name())
		if _, ok := mayImport[p.name()]; !ok {
			t.Errorf("package %s is not in the import table", p.ImportPath)
		}
	}
	for name := range mayImport {
		if !slices.Contains(names, name) {
			t.Errorf("the import table names %s, which does not exist", name)
		}
	}
}

func TestImportTable(t *testing.T) {
	for _, p := range packages(t) {
		for _, imp := range p.Imports {
			switch {
			case isOurs(imp):
				if !allowed(mayImport[p.name()], local(imp)) {
					t.Errorf("%s imports %s, which the import table does not allow", p.name(), local(imp))
				}
			case isStandard(imp):
				if within(imp, neverImport[p.name()]) {
					t.Errorf("%s imports %s: it promises not to", p.name(), imp)
				}
			default:
				checkLibrary(t, p.name(), imp, false)
			}
		}
	}
}

func TestImportTableForTests(t *testing.T) {
	for _, p := range packages(t) {
		for _, imp := range append(slices.Clone(p.TestImports), p.XTestImports...) {
			switch {
			case isOurs(imp):
				to := local(imp)
				if to != p.name() && to != "internal/testpeer" &&
					!allowed(mayImport[p.name()], to) && !allowed(testsMayImport[p.name()], to) {
					t.Errorf("tests of %s import %s, which the import table does not allow", p.name(), to)
				}
			case isStandard(imp):
			default:
				checkLibrary(t, p.name(), imp, true)
			}
		}
	}
}

// allowed is exact: leave to import a package is no leave to import what lies below it.
func allowed(list []string, name string) bool {
	return slices.Contains(list, all) || slices.Contains(list, name)
}

func checkLibrary(t *testing.T, pkg, imp string, test bool) {
	t.Helper()
	key, ok := ownerKey(imp)
	switch {
	case !ok:
		t.Errorf("%s imports %s, which has no owner in the table of libraries", pkg, imp)
	case test && within(pkg, testOwners[key]):
	case !within(pkg, owners[key]) || within(pkg, notBelow[key]):
		t.Errorf("%s imports %s, which belongs to %s", pkg, imp, strings.Join(owners[key], ", "))
	}
}
