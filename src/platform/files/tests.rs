use std::os::unix::fs::{chown, symlink};

use super::*;

/// A directory where everybody may write, as `/tmp` is.
fn open_to_all(mode: u32) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(mode)).unwrap();
    folder
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn refusal(path: &Path) -> String {
    private_directory(path).unwrap_err().to_string()
}

#[test]
fn a_directory_is_made_for_our_user_alone() {
    let tmp = open_to_all(0o1777);
    let path = tmp.path().join("leadsman/state");
    private_directory(&path).unwrap();
    assert_eq!(mode(&path), 0o700);
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    // One of our own that others may enter.
    fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
    private_directory(&path).unwrap();
    assert_eq!(mode(&path), 0o700);
    // A volume with the group of the pod.
    fs::set_permissions(&path, Permissions::from_mode(0o2777)).unwrap();
    private_directory(&path).unwrap();
    assert_eq!(mode(&path), 0o2770);
}

#[test]
fn a_trap_is_refused_and_named() {
    let tmp = open_to_all(0o1777);
    let victim = tmp.path().join("victim");
    fs::create_dir(&victim).unwrap();
    let trap = tmp.path().join("leadsman");
    symlink(&victim, &trap).unwrap();
    assert!(
        refusal(&trap).contains("symbolic link"),
        "{}",
        refusal(&trap)
    );
    fs::remove_file(&trap).unwrap();
    symlink(tmp.path().join("not-there-yet"), &trap).unwrap();
    assert!(refusal(&trap).contains("symbolic link"));
    fs::remove_file(&trap).unwrap();
    fs::write(&trap, "").unwrap();
    assert!(refusal(&trap).contains("not a directory"));
    assert!(!tmp.path().join("not-there-yet").exists());
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 0);
}

/// Needs the right to give a directory away, so it says so where there is none.
#[test]
fn a_directory_of_another_user_is_refused_where_anybody_could_have_laid_it() {
    let tmp = open_to_all(0o1777);
    let laid = tmp.path().join("leadsman");
    fs::create_dir(&laid).unwrap();
    if chown(&laid, Some(54_321), Some(54_321)).is_err() {
        eprintln!("left out: only root can give a directory to another user");
        return;
    }
    for rights in [0o700, 0o777, 0o1777] {
        fs::set_permissions(&laid, Permissions::from_mode(rights)).unwrap();
        assert!(refusal(&laid).contains("uid 54321"), "{}", refusal(&laid));
        assert_eq!(mode(&laid), rights, "what is not ours is left as it is");
    }
    // An administrator's: nobody else can lay anything beside it.
    fs::set_permissions(tmp.path(), Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&laid, Permissions::from_mode(0o770)).unwrap();
    private_directory(&laid).unwrap();
    fs::set_permissions(&laid, Permissions::from_mode(0o777)).unwrap();
    assert!(refusal(&laid).contains("chmod o-w"), "{}", refusal(&laid));
    fs::set_permissions(&laid, Permissions::from_mode(0o1777)).unwrap();
    private_directory(&laid).unwrap();
}

#[test]
fn a_file_that_is_made_follows_no_link_and_writes_over_nothing() {
    let tmp = open_to_all(0o1777);
    let victim = tmp.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    let path = tmp.path().join("state.json.new");
    symlink(&victim, &path).unwrap();
    create(&path).unwrap().write_all(b"ours").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "ours");
    assert_eq!(mode(&path), 0o600);
    fs::remove_file(&path).unwrap();
    fs::hard_link(&victim, &path).unwrap();
    create(&path).unwrap().write_all(b"ours").unwrap();
    assert!(append(&path).is_ok());
    fs::remove_file(&path).unwrap();
    // What is written at its end, and read.
    fs::hard_link(&victim, &path).unwrap();
    assert!(
        append(&path)
            .unwrap_err()
            .to_string()
            .contains("another name")
    );
    fs::remove_file(&path).unwrap();
    symlink(&victim, &path).unwrap();
    for refused in [append(&path), open(&path)] {
        assert!(refused.unwrap_err().to_string().contains("symbolic link"));
    }
    put(&path, b"recorded").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "recorded");
    assert_eq!(mode(&path), 0o600);
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    put(Path::new("/dev/null"), b"nothing").unwrap();
    assert!(!fs::metadata("/dev/null").unwrap().is_file());
}

#[test]
fn a_pipe_is_not_waited_for() {
    let tmp = open_to_all(0o700);
    let pipe = tmp.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    for refused in [open(&pipe), open_theirs(&pipe), append(&pipe)] {
        refused.unwrap_err();
    }
    assert!(
        read_theirs(tmp.path(), 10)
            .unwrap_err()
            .to_string()
            .contains("directory")
    );
    fs::write(tmp.path().join("large"), "123456").unwrap();
    let large = read_theirs(&tmp.path().join("large"), 5).unwrap_err();
    assert!(large.to_string().contains("larger than 5 bytes"));
}

#[test]
fn a_temporary_directory_is_gone_with_us() {
    let temporary = TemporaryDir::new().unwrap();
    let path = temporary.path().to_owned();
    assert_eq!(mode(&path), 0o700);
    drop(temporary);
    assert!(!path.exists());
}
