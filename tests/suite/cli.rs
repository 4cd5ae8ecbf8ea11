//! Tests the program where it needs nothing but a checkout.

use std::process::Command;

fn run(arguments: &str) -> (i32, String, String) {
    let done =
        Command::new(env!("CARGO_BIN_EXE_evenkeel")).args(arguments.split(' ')).current_dir("demo").output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (done.status.code().unwrap(), text(done.stdout), text(done.stderr))
}

#[test]
fn who_can_names_teams_and_what_stands_behind_them() {
    let (code, out, _) = run("who-can apply staging/network");
    assert_eq!(
        (code, out.as_str()),
        (0, "In staging, apply is allowed to any of\n  team:platform   the GitHub team demo/platform\n")
    );
    let (code, out, err) = run("who-can destroy dev");
    assert_eq!((code, out.as_str()), (0, "No line of the permissions allows destroy in dev.\n"));
    assert!(err.contains("token:local"));
    for (arguments, hint) in
        [("who-can aply staging", "did you mean `apply`?"), ("who-can apply stagin/x", "did you mean `staging`?")]
    {
        let (code, out, err) = run(arguments);
        assert_eq!((code, out.as_str()), (64, ""), "{err}");
        assert!(err.contains(hint), "{err}");
    }
    let (_, out, _) = run("who-can plan dev -o json");
    let document: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&document["command"], &document["allowed"][0]["to"]), (&"who-can".into(), &"permission:write".into()));
}
